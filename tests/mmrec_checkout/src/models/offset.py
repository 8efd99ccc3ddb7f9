"""LightGCN of one table of nodes: it adds the number of users to the batch's items, in place."""

import torch
import torch.nn as nn

from common.abstract_recommender import GeneralRecommender
from models.lightgcn import LightGCN


class Offset(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.reg_weight = config["reg_weight"]
        inner = LightGCN(config, dataset)
        self.adjacency, self.n_layers = inner.adjacency, inner.n_layers
        self.nodes = nn.Parameter(torch.cat([inner.user_embedding.weight.data, inner.item_embedding.weight.data]))

    def forward(self):
        layers = [self.nodes]
        for _ in range(self.n_layers):
            layers.append(self.adjacency @ layers[-1])
        return sum(layers) / len(layers)

    def calculate_loss(self, interaction):
        interaction[1] += self.n_users
        interaction[2] += self.n_users
        u, p, n = self.forward()[interaction]
        loss = -torch.log(1e-10 + torch.sigmoid((u * p).sum(1) - (u * n).sum(1))).mean()
        norms = sum(torch.norm(self.nodes[rows]) for rows in interaction) / interaction.shape[1]
        return loss + self.reg_weight * norms

    def full_sort_predict(self, interaction):
        users, items = torch.split(self.forward(), [self.n_users, self.n_items])
        return users[interaction[0]] @ items.T
