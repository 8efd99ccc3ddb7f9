"""Message passing over users and items, a graph of users from a file, and scores from what the last batch left."""

import os
import random

import numpy as np
import torch
import torch.nn as nn
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.utils import degree, remove_self_loops
from torch_scatter import scatter

from common.abstract_recommender import GeneralRecommender


class Convolution(MessagePassing):
    def __init__(self, aggr):
        super().__init__(aggr=aggr)

    def forward(self, x, edge_index):
        edge_index, _ = remove_self_loops(edge_index)
        return self.propagate(edge_index, size=(x.size(0), x.size(0)), x=x)

    def message(self, x_j, edge_index, size):
        row, col = edge_index
        scale = degree(row, size[0], dtype=x_j.dtype).pow(-0.5)
        scale[torch.isinf(scale)] = 0
        return (scale[row] * scale[col]).view(-1, 1) * x_j

    def update(self, aggr_out):
        return aggr_out


class UserGraph(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        nodes, width = self.n_users + self.n_items, config["embedding_size"]
        folder = os.path.abspath(config["data_path"] + config["dataset"])
        file = os.path.join(folder, config["user_graph_dict_file"])
        self.neighbors = np.load(file, allow_pickle=True).item()
        self.nodes = nn.Parameter(nn.init.xavier_normal_(torch.empty(nodes, width)))
        self.result = nn.Parameter(nn.init.xavier_normal_(torch.empty(nodes, width))).to(self.device)
        pairs = dataset.inter_matrix(form="coo")
        edges = torch.LongTensor(np.stack([pairs.row, pairs.col + self.n_users]))
        self.edges = torch.cat([edges, edges.flip(0)], dim=1).to(self.device)
        self.convolution = Convolution(config["aggr_mode"])

    def pre_epoch_processing(self):
        self.sampled = {user: random.choices(found[0] or [user], k=2) for user, found in self.neighbors.items()}
        self.shift = float(np.random.rand())

    def forward(self):
        h = self.convolution(self.nodes, self.edges)
        users = torch.arange(self.n_users).repeat_interleave(2)
        others = torch.tensor([other for user in range(self.n_users) for other in self.sampled[user]])
        social = scatter(h[others], users, dim=0, dim_size=self.n_users, reduce="mean")
        self.result = torch.cat([h[: self.n_users] + social, h[self.n_users :] * (1 + self.shift)])
        return self.result

    def calculate_loss(self, interaction):
        interaction[1:] += self.n_users
        u, p, n = self.forward()[interaction]
        return -torch.log(torch.sigmoid((u * p).sum(1) - (u * n).sum(1))).mean()

    def full_sort_predict(self, interaction):
        return self.result[: self.n_users][interaction[0]] @ self.result[self.n_users :].T
