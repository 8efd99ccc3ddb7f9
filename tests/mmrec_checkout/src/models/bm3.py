"""Bootstrapped views: batches without negatives."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.functional import cosine_similarity

from common.abstract_recommender import GeneralRecommender
from common.loss import EmbLoss


class BM3(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        width = config["embedding_size"]
        self.n_layers, self.dropout = config["n_layers"], config["dropout"]
        self.reg_weight, self.cl_weight = config["reg_weight"], config["cl_weight"]
        self.user_embedding, self.item_id_embedding = (
            nn.Embedding(self.n_users, width),
            nn.Embedding(self.n_items, width),
        )
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_id_embedding.weight)
        self.predictor = nn.Linear(width, width)
        if self.v_feat is not None:
            self.image_embedding = nn.Embedding.from_pretrained(self.v_feat, freeze=False)
            self.image_trs = nn.Linear(self.v_feat.shape[1], width)
        if self.t_feat is not None:
            self.text_embedding = nn.Embedding.from_pretrained(self.t_feat, freeze=False)
            self.text_trs = nn.Linear(self.t_feat.shape[1], width)
        self.reg_loss = EmbLoss()
        pairs = dataset.inter_matrix(form="coo").astype(np.float32)
        place = torch.LongTensor(np.vstack([pairs.row, pairs.col + self.n_users]))
        place = torch.cat([place, place.flip(0)], dim=1)
        degrees = torch.bincount(place[0], minlength=self.n_users + self.n_items) + 1e-7
        values = degrees[place[0]].pow(-0.5) * degrees[place[1]].pow(-0.5)
        self.adjacency = torch.sparse_coo_tensor(place, values.float(), (len(degrees), len(degrees))).to(self.device)

    def forward(self):
        layers = [torch.cat([self.user_embedding.weight, self.item_id_embedding.weight])]
        for _ in range(self.n_layers):
            layers.append(torch.sparse.mm(self.adjacency, layers[-1]))
        users, items = torch.split(torch.stack(layers).mean(0), [self.n_users, self.n_items])
        return users, items + self.item_id_embedding.weight

    def calculate_loss(self, interaction):
        users, items = interaction[0], interaction[1]
        assert len(interaction) == 2
        all_users, all_items = self.forward()
        with torch.no_grad():
            u_target = F.dropout(all_users.clone(), self.dropout)[users]
            i_target = F.dropout(all_items.clone(), self.dropout)[items]
        u, i = self.predictor(all_users)[users], self.predictor(all_items)[items]
        loss = (1 - cosine_similarity(u, i_target)).mean() + (1 - cosine_similarity(i, u_target)).mean()
        content = 0.0
        for trs, table in self.tables():
            online = trs(table)
            target = F.dropout(online.detach().clone(), self.dropout)[items]
            online = self.predictor(online)[items]
            content = content + (1 - cosine_similarity(online, i_target)).mean()
            content = content + (1 - cosine_similarity(online, target)).mean()
        return loss + self.reg_weight * self.reg_loss(all_users, all_items) + self.cl_weight * content

    def tables(self):
        if self.t_feat is not None:
            yield self.text_trs, self.text_embedding.weight
        if self.v_feat is not None:
            yield self.image_trs, self.image_embedding.weight

    def full_sort_predict(self, interaction):
        users, items = self.forward()
        return self.predictor(users)[interaction[0]] @ self.predictor(items).T
