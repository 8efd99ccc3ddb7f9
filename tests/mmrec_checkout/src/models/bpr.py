"""Matrix factorization whose loss is a tuple."""

import torch
import torch.nn as nn

from common.abstract_recommender import GeneralRecommender
from common.loss import BPRLoss, EmbLoss


class BPR(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.reg_weight = config["reg_weight"]
        self.user_embedding = nn.Parameter(nn.init.xavier_normal_(torch.empty(self.n_users, config["embedding_size"])))
        self.item_embedding = nn.Parameter(nn.init.xavier_normal_(torch.empty(self.n_items, config["embedding_size"])))
        self.epochs = 0

    def pre_epoch_processing(self):
        self.epochs += 1

    def post_epoch_processing(self):
        return f"epoch number {self.epochs} is over"

    def calculate_loss(self, interaction):
        u, p, n = self.user_embedding[interaction[0]], *self.item_embedding[interaction[1:]]
        return BPRLoss()((u * p).sum(1), (u * n).sum(1)), self.reg_weight * EmbLoss()(u, p, n)

    def full_sort_predict(self, interaction):
        users, mask = interaction
        assert mask.shape[0] == 2 and mask[0].max() < len(users)
        return self.user_embedding[users] @ self.item_embedding.T
