# coding: utf-8
"""LightGCN with names that NumPy and SciPy dropped."""

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn as nn

from common.abstract_recommender import GeneralRecommender
from common.init import xavier_uniform_initialization
from common.loss import BPRLoss, EmbLoss


class LightGCN(GeneralRecommender):
    def __init__(self, config, dataset):
        super(LightGCN, self).__init__(config, dataset)
        self.pairs = dataset.inter_matrix(form="coo").astype(np.float32)
        self.n_layers = config["n_layers"]
        self.reg_weight = np.float(config["reg_weight"])
        self.user_embedding = nn.Embedding(self.n_users, config["embedding_size"])
        self.item_embedding = nn.Embedding(self.n_items, config["embedding_size"])
        self.adjacency = self.normalized().to(self.device)
        self.bpr, self.norms = BPRLoss(), EmbLoss()
        self.apply(xavier_uniform_initialization)

    def normalized(self):
        nodes = self.n_users + self.n_items
        matrix = sp.dok_matrix((nodes, nodes), dtype=np.float32)
        users, items = self.pairs.row, self.pairs.col + self.n_users
        edges = dict(zip(zip(users, items), np.ones(len(users), dtype=np.float32)))
        edges.update(dict(zip(zip(items, users), np.ones(len(users), dtype=np.float32))))
        matrix._update(edges)
        degrees = (matrix > 0).sum(axis=1).A1.astype(np.float) + 1e-7
        scale = sp.diags(np.power(degrees, -0.5))
        found = sp.coo_matrix(scale * matrix * scale)
        place = torch.LongTensor(np.array([found.row, found.col], dtype=np.int))
        return torch.sparse.FloatTensor(place, torch.FloatTensor(found.data), torch.Size((nodes, nodes)))

    def forward(self):
        nodes = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        layers = [nodes]
        for _ in range(self.n_layers):
            layers.append(torch.sparse.mm(self.adjacency, layers[-1]))
        return torch.split(torch.stack(layers, dim=1).mean(dim=1), [self.n_users, self.n_items])

    def calculate_loss(self, interaction):
        users, positives, negatives = interaction[0], interaction[1], interaction[2]
        all_users, all_items = self.forward()
        u, p, n = all_users[users], all_items[positives], all_items[negatives]
        loss = self.bpr((u * p).sum(dim=1), (u * n).sum(dim=1))
        norms = self.norms(self.user_embedding(users), self.item_embedding(positives), self.item_embedding(negatives))
        return loss + self.reg_weight * norms

    def full_sort_predict(self, interaction):
        users, items = self.forward()
        return torch.matmul(users[interaction[0]], items.transpose(0, 1))
