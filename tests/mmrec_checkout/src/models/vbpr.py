"""VBPR that asks for a GPU wherever it can."""

import torch
import torch.nn as nn

from common.abstract_recommender import GeneralRecommender
from common.init import xavier_normal_initialization
from common.loss import BPRLoss, EmbLoss


class VBPR(GeneralRecommender):
    def __init__(self, config, dataloader):
        super().__init__(config, dataloader)
        self.reg_weight = config["reg_weight"]
        width = config["embedding_size"]
        self.u_embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.n_users, 2 * width)).cuda())
        self.i_embedding = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.n_items, width)).cuda())
        if self.v_feat is not None and self.t_feat is not None:
            self.raw = torch.cat((self.t_feat, self.v_feat), -1).cuda()
        else:
            self.raw = self.v_feat if self.v_feat is not None else self.t_feat
        self.item_linear = nn.Linear(self.raw.shape[1], width).cuda()
        self.loss, self.reg_loss = BPRLoss().cuda(), EmbLoss()
        self.apply(xavier_normal_initialization)

    def items(self):
        return torch.cat((self.i_embedding, self.item_linear(self.raw.cuda())), -1)

    def calculate_loss(self, interaction):
        items = self.items()
        u, p, n = self.u_embedding[interaction[0].cuda()], items[interaction[1].cuda()], items[interaction[2].cuda()]
        return self.loss((u * p).sum(1), (u * n).sum(1)) + self.reg_weight * self.reg_loss(u, p, n)

    def full_sort_predict(self, interaction):
        return self.u_embedding[interaction[0].cuda(non_blocking=True)] @ self.items().T
