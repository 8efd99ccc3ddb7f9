"""Users who share items, from a file of a name of its own, and an item graph that is kept in another."""

import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from common.abstract_recommender import GeneralRecommender


class Users(nn.Module):
    def forward(self, features, graph, weights):
        return torch.matmul(weights.unsqueeze(1), features[torch.tensor(graph)]).squeeze(1)


class DUO(GeneralRecommender):
    def __init__(self, config, dataset):
        super(DUO, self).__init__(config, dataset)
        self.k, self.knn_k, dim = 4, config["knn_k"], config["embedding_size"]
        folder = os.path.abspath(config["data_path"] + config["dataset"])
        self.user_graph_dict = np.load(os.path.join(folder, "user_graph_dict.npy"), allow_pickle=True).item()
        file = os.path.join(folder, "mm_adj_{}.pt".format(self.knn_k))
        if os.path.exists(file):
            self.mm_adj = torch.load(file)
        else:
            self.mm_adj = self.nearest(self.t_feat)
            torch.save(self.mm_adj, file)
        self.weight_u = nn.Parameter(torch.tensor(np.random.randn(self.n_users, 2, 1), dtype=torch.float32))
        self.weight_u.data = F.softmax(self.weight_u, dim=1)
        counts = torch.zeros(self.n_items, dtype=int).tolist()
        for item in dataset.inter_matrix(form="coo").col:
            counts[item] += 1
        self.seen = torch.tensor([count > 0 for count in counts])
        dropped = torch.tensor(np.random.choice(torch.arange(self.n_items), self.n_items // 2, replace=False))
        self.kept = torch.ones(self.n_items, 1).index_fill(0, dropped, 0.0).to(self.device)
        self.image, self.text = (nn.Linear(feat.shape[1], dim) for feat in (self.v_feat, self.t_feat))
        self.preference = nn.Parameter(nn.init.xavier_normal_(torch.randn(self.n_users, dim)).to(self.device))
        self.result_embed = nn.Parameter(torch.randn(self.n_users + self.n_items, dim)).to(self.device)
        self.users = Users()

    def nearest(self, features):
        unit = features.div(torch.norm(features, p=2, dim=-1, keepdim=True))
        _, found = torch.topk(torch.mm(unit, unit.transpose(1, 0)), self.knn_k, dim=-1)
        rows = torch.unsqueeze(torch.arange(found.shape[0]).to(self.device), 1).expand(-1, self.knn_k)
        indices = torch.stack((torch.flatten(rows), torch.flatten(found)), 0)
        adj = torch.sparse.FloatTensor(indices, torch.ones_like(indices[0]), torch.Size([self.n_items] * 2))
        scale = torch.pow(1e-7 + torch.sparse.sum(adj, -1).to_dense(), -0.5)
        return torch.sparse.FloatTensor(indices, scale[indices[0]] * scale[indices[1]], adj.size())

    def pre_epoch_processing(self):
        self.graph, weights = [], torch.zeros(len(self.user_graph_dict), self.k)
        for user in range(len(self.user_graph_dict)):
            others, counts = (list(part[: self.k]) for part in self.user_graph_dict[user])
            while 0 < len(others) < self.k:
                place = np.random.randint(0, len(others))
                others.append(others[place])
                counts.append(counts[place])
            if others:
                weights[user] = F.softmax(torch.tensor(counts), dim=0)
            self.graph.append(others or [0] * self.k)
        self.weights = weights.to(self.device)

    def calculate_loss(self, interaction):
        user, positive, negative = interaction[0], interaction[1], interaction[2]
        positive += self.n_users
        negative += self.n_users
        items = self.image(self.v_feat) * self.kept + self.text(self.t_feat)
        items = items + torch.sparse.mm(self.mm_adj, items)
        users = self.preference * self.weight_u.sum(1)
        users = users + self.users(users, self.graph, self.weights)
        self.result_embed = torch.cat((users, items), dim=0)
        u, p, n = self.result_embed[user], self.result_embed[positive], self.result_embed[negative]
        return -torch.mean(torch.log2(torch.sigmoid((u * p).sum(1) - (u * n).sum(1)))), 0.1 * (self.weight_u**2).mean()

    def full_sort_predict(self, interaction):
        users, items = self.result_embed[: self.n_users], self.result_embed[self.n_users :]
        return torch.matmul(users[interaction[0]], items.t()).squeeze()
