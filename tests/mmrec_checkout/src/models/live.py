"""A model that reads features in each step, so an encoder can train with it."""

import torch
import torch.nn as nn

from common.abstract_recommender import GeneralRecommender


class Live(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        width = config["embedding_size"]
        self.users = nn.Parameter(nn.init.xavier_normal_(torch.empty(self.n_users, width)))
        self.items = nn.Parameter(nn.init.xavier_normal_(torch.empty(self.n_items, width)))
        if self.v_feat is not None:
            self.v_linear = nn.Linear(self.v_feat.shape[1], width)
        if self.t_feat is not None:
            self.t_linear = nn.Linear(self.t_feat.shape[1], width)

    def item_vectors(self):
        vectors = self.items
        if self.v_feat is not None:
            vectors = vectors + self.v_linear(self.v_feat)
        if self.t_feat is not None:
            vectors = vectors + self.t_linear(self.t_feat)
        return vectors

    def calculate_loss(self, interaction):
        items, users = self.item_vectors(), self.users[interaction[0]]
        gap = (users * (items[interaction[1]] - items[interaction[2]])).sum(1)
        return -torch.log(torch.sigmoid(gap) + 1e-10).mean()

    def full_sort_predict(self, interaction):
        return self.users[interaction[0]] @ self.item_vectors().T
