"""Message passing in each modality with attention over edges, and a graph whose edges drop out."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.utils import add_self_loops, degree, dropout_adj, remove_self_loops, softmax
import torch_geometric

from common.abstract_recommender import GeneralRecommender


class Linear(MessagePassing):
    def __init__(self, wide, narrow, aggr="add", **kwargs):
        super(Linear, self).__init__(aggr=aggr, **kwargs)
        self.wide, self.weight = wide, nn.Parameter(torch.Tensor(wide, narrow))
        self.reset_parameters()

    def reset_parameters(self):
        torch_geometric.nn.inits.uniform(self.wide, self.weight)

    def forward(self, x, edge_index, size=None):
        edge_index, _ = add_self_loops(edge_index.long(), num_nodes=x.size(0))
        return self.propagate(edge_index, size=(x.size(0), x.size(0)), x=torch.matmul(x, self.weight))

    def message(self, x_j, edge_index, size):
        row, col = edge_index
        scale = degree(row, size[0], dtype=x_j.dtype).pow(-0.5)
        return (scale[row] * scale[col]).view(-1, 1) * x_j

    def update(self, aggr_out):
        return aggr_out


class Attention(MessagePassing):
    def __init__(self):
        super(Attention, self).__init__(aggr="add")

    def forward(self, x, edge_index, size=None):
        return self.propagate(edge_index, size=size, x=x)

    def message(self, x_i, x_j, size_i, edge_index_i):
        self.alpha = softmax((x_i * F.leaky_relu(x_j)).sum(dim=-1), edge_index_i, num_nodes=size_i)
        return x_j * self.alpha.view(-1, 1)


class Weighted(MessagePassing):
    def forward(self, x, edge_index, weight_vector, size=None):
        self.weight_vector = weight_vector
        return self.propagate(edge_index, size=size, x=x)

    def message(self, x_j):
        return x_j * self.weight_vector


class Modality(torch.nn.Module):
    def __init__(self, features, n_users, n_items, dim, device):
        super(Modality, self).__init__()
        self.features = features
        self.preference = nn.Parameter(nn.init.xavier_normal_(torch.rand((n_users, dim))))
        self.mlp = nn.Linear(features.size(1), dim)
        self.first, self.attention = Linear(dim, dim), Attention()
        self.state = nn.Parameter(torch.zeros(n_users + n_items, dim)).to(device)

    def forward(self, edge_index, id_embedding):
        x = torch.cat((self.preference, F.normalize(torch.tanh(self.mlp(self.features)))), 0)
        h = F.leaky_relu(self.first(x, edge_index)) + id_embedding
        self.state = h + self.attention(h, edge_index)
        return self.state, self.attention.alpha.view(-1, 1)


class ATTENTION(GeneralRecommender):
    def __init__(self, config, dataset):
        super(ATTENTION, self).__init__(config, dataset)
        dim, nodes = config["embedding_size"], self.n_users + self.n_items
        self.sign = torch.tensor([[1.0], [-1.0]]).cuda()
        inter = dataset.inter_matrix(form="coo").astype(np.float32)
        edges = np.column_stack((inter.row, inter.col + self.n_users))
        edges = torch.tensor(edges, dtype=torch.long).t().contiguous().to(self.device)
        self.edges = torch.cat((edges, edges[[1, 0]]), dim=1)
        self.id_embedding = nn.init.xavier_normal_(torch.rand((nodes, dim), requires_grad=True)).to(self.device)
        self.weighted, self.modalities = Weighted("mean"), nn.ModuleList()
        for features in (self.v_feat, self.t_feat):
            if features is not None:
                self.modalities.append(Modality(features, self.n_users, self.n_items, dim, self.device))
        self.result = nn.init.xavier_normal_(torch.rand((nodes, dim))).to(self.device)
        self.a_feat = None

    def forward(self):
        edges, _ = dropout_adj(self.edges, p=0.1 if self.training else 0.0)
        edges, _ = remove_self_loops(edges)
        outs = [modality(edges, self.id_embedding) for modality in self.modalities]
        weight, _ = torch.max(torch.cat([out[1] for out in outs], dim=1), dim=1, keepdim=True)
        self.result = self.weighted(outs[0][0], edges, torch.relu(weight)) + sum(out[0] for out in outs)
        return self.result

    def calculate_loss(self, interaction):
        users = interaction[0].repeat_interleave(2)
        items = torch.stack((interaction[1], interaction[2])).t().contiguous().view(-1) + self.n_users
        out = self.forward()
        score = torch.sum(out[users] * out[items], dim=1).view(-1, 2)
        return -torch.mean(torch.log(torch.sigmoid(torch.matmul(score, self.sign))))

    def full_sort_predict(self, interaction):
        return torch.matmul(self.result[: self.n_users][interaction[0], :], self.result[self.n_users :].t())
