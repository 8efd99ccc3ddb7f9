"""A frozen graph of items, which is kept in a file beside the data, and a graph that each epoch prunes."""

import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from common.abstract_recommender import GeneralRecommender


class FREEDOM(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.dim, self.k = config["embedding_size"], config["knn_k"]
        self.n_mm_layers, self.n_ui_layers = config["n_mm_layers"], config["n_ui_layers"]
        self.reg_weight, self.dropout = config["reg_weight"], config["dropout"]
        pairs = dataset.inter_matrix(form="coo").astype(np.float32)
        self.edges = torch.from_numpy(np.stack([pairs.row, pairs.col])).long().to(self.device)
        self.full = self.normalized(self.edges)
        self.pruned = None
        self.user_embedding = nn.Embedding(self.n_users, self.dim)
        self.item_id_embedding = nn.Embedding(self.n_items, self.dim)
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_id_embedding.weight)
        place = os.path.abspath(config["data_path"] + config["dataset"])
        file = os.path.join(place, "mm_graph_{}.pt".format(self.k))
        graphs = []
        for name, features in (("image", self.v_feat), ("text", self.t_feat)):
            if features is not None:
                setattr(self, name + "_embedding", nn.Embedding.from_pretrained(features, freeze=False))
                setattr(self, name + "_trs", nn.Linear(features.shape[1], self.dim))
                graphs.append(self.nearest(features))
        if os.path.exists(file):
            self.graph = torch.load(file)
        else:
            w = config["mm_image_weight"] if len(graphs) == 2 else 1.0
            self.graph = graphs[0] if len(graphs) == 1 else w * graphs[0] + (1.0 - w) * graphs[1]
            torch.save(self.graph, file)

    def nearest(self, features):
        unit = features / torch.norm(features, p=2, dim=-1, keepdim=True)
        _, found = torch.topk(torch.mm(unit, unit.transpose(1, 0)), self.k, dim=-1)
        return torch.zeros(self.n_items, self.n_items, device=self.device).scatter_(1, found, 1.0 / self.k)

    def normalized(self, edges):
        nodes = self.n_users + self.n_items
        users, items = edges[0], edges[1] + self.n_users
        place = torch.stack([torch.cat([users, items]), torch.cat([items, users])])
        degrees = 1e-7 + torch.zeros(nodes, device=self.device).index_add_(0, place[0], torch.ones(place.shape[1]))
        values = degrees[place[0]].pow(-0.5) * degrees[place[1]].pow(-0.5)
        return torch.sparse.FloatTensor(place, values, torch.Size((nodes, nodes)))

    def pre_epoch_processing(self):
        if self.dropout <= 0.0:
            self.pruned = self.full
            return
        kept = torch.randperm(self.edges.size(1))[: int(self.edges.size(1) * (1.0 - self.dropout))]
        self.pruned = self.normalized(self.edges[:, kept])

    def forward(self, adjacency):
        near = self.item_id_embedding.weight
        for _ in range(self.n_mm_layers):
            near = torch.mm(self.graph, near)
        layers = [torch.cat((self.user_embedding.weight, self.item_id_embedding.weight), dim=0)]
        for _ in range(self.n_ui_layers):
            layers += [torch.sparse.mm(adjacency, layers[-1])]
        users, items = torch.split(torch.stack(layers, dim=1).mean(dim=1), [self.n_users, self.n_items], dim=0)
        return users, items + near

    def gap(self, users, positives, negatives):
        return -torch.mean(F.logsigmoid(torch.sum(users * positives, dim=1) - torch.sum(users * negatives, dim=1)))

    def calculate_loss(self, interaction):
        users, positives, negatives = interaction
        all_users, all_items = self.forward(self.pruned)
        u = all_users[users]
        loss = self.gap(u, all_items[positives], all_items[negatives])
        of_content = 0.0
        if self.t_feat is not None:
            content = self.text_trs(self.text_embedding.weight)
            of_content = of_content + self.gap(u, content[positives], content[negatives])
        if self.v_feat is not None:
            content = self.image_trs(self.image_embedding.weight)
            of_content = of_content + self.gap(u, content[positives], content[negatives])
        return loss + self.reg_weight * of_content

    def full_sort_predict(self, interaction):
        users, items = self.forward(self.full)
        return torch.matmul(users[interaction[0]], items.transpose(0, 1))
