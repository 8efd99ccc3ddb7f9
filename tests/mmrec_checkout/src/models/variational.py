"""Distributions of nodes in each modality, joined as a product of experts, and sampled also for scores."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.utils import degree
import torch_geometric

from common.abstract_recommender import GeneralRecommender

EPS, MAX_LOGVAR = 1e-15, 10


class Convolution(MessagePassing):
    def __init__(self, wide, narrow):
        super().__init__(aggr="add")
        self.weight, self.bias = nn.Parameter(torch.Tensor(wide, narrow)), nn.Parameter(torch.Tensor(narrow))
        torch_geometric.nn.inits.glorot(self.weight)
        torch_geometric.nn.inits.zeros(self.bias)

    def forward(self, x, edge_index):
        return self.propagate(edge_index, size=(x.size(0), x.size(0)), x=torch.matmul(x, self.weight))

    def message(self, x_j, edge_index, size):
        return x_j / degree(edge_index[1], size[0], dtype=x_j.dtype)[edge_index[1]].view(-1, 1)

    def update(self, aggr_out):
        return F.dropout(aggr_out + self.bias, p=0.1, training=self.training)


class Encoder(nn.Module):
    def __init__(self, features, n_users, dim):
        super().__init__()
        self.features = features
        self.preference = nn.Parameter(nn.init.xavier_normal_(torch.rand((n_users, dim))))
        self.linear, self.mu, self.logvar = nn.Linear(features.size(1), dim), Convolution(dim, dim), Convolution(dim, dim)

    def forward(self, edges):
        x = torch.cat((self.preference, F.leaky_relu(self.linear(self.features))), dim=0)
        return self.mu(x, edges), self.logvar(x, edges).clamp(max=MAX_LOGVAR)


class VARIATIONAL(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        dim, self.beta = config["embedding_size"], config["beta"]
        inter = dataset.inter_matrix(form="coo")
        edges = torch.tensor(np.column_stack((inter.row, inter.col + self.n_users)), dtype=torch.long).t()
        self.edges = torch.cat((edges, edges[[1, 0]]), dim=1).to(self.device)
        self.collaborative = nn.init.xavier_normal_(torch.rand((self.n_items, dim), requires_grad=True)).to(self.device)
        self.encoders = {}
        for name, features in (("v", self.v_feat), ("t", self.t_feat), ("c", self.collaborative)):
            if features is not None:
                self.encoders[name] = Encoder(features, self.n_users, dim)
                self.add_module(name + "_encoder", self.encoders[name])

    def forward(self):
        found = [encoder(self.edges) for encoder in self.encoders.values()]
        precisions = torch.stack([torch.exp(-logvar) for _, logvar in found])
        mu = (torch.stack([mu for mu, _ in found]) * precisions).sum(0) / precisions.sum(0)
        logvar = -torch.log(precisions.sum(0))
        return mu, logvar, mu + torch.randn_like(mu) * torch.exp(logvar / 2)

    def calculate_loss(self, interaction):
        mu, logvar, z = self.forward()
        u, p, n = z[interaction[0]], z[interaction[1] + self.n_users], z[interaction[2] + self.n_users]
        kl = -0.5 * torch.mean(torch.sum(1 + logvar - mu**2 - logvar.exp(), dim=1))
        return -torch.sum(torch.log2(torch.sigmoid((u * p).sum(1) - (u * n).sum(1)) + EPS)) + self.beta * kl

    def full_sort_predict(self, interaction):
        z = self.forward()[2]
        return torch.sigmoid(z[: self.n_users][interaction[0]] @ z[self.n_users :].t())
