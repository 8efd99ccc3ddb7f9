"""Every helper function that MMRec's model files import, and a module of this checkout's own."""

import torch
import torch.nn as nn

from common.abstract_recommender import GeneralRecommender
from common.encoders import LightGCN_Encoder
from common.init import xavier_normal_initialization, xavier_uniform_initialization
from common.loss import BPRLoss, EmbLoss, L2Loss
from utils.own import double
from utils.utils import (
    build_knn_neighbourhood,
    build_knn_normalized_graph,
    build_sim,
    compute_normalized_laplacian,
    dict2str,
    early_stopping,
    get_dense_laplacian,
    get_local_time,
    get_sparse_laplacian,
    init_seed,
)


class Helpers(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        init_seed(config["seed"])
        k = config["knn_k"]
        self.sim = build_sim(self.t_feat)
        self.dense = compute_normalized_laplacian(build_knn_neighbourhood(self.sim, topk=k))
        self.sparse = build_knn_normalized_graph(self.sim, topk=k, is_sparse=True, norm_type="sym")
        self.walk = build_knn_normalized_graph(self.sim, topk=k, is_sparse=False, norm_type="rw")
        self.plain = get_dense_laplacian(self.walk, normalization="none")
        edges = torch.stack([torch.arange(self.n_items), torch.arange(self.n_items).flip(0)])
        self.ring = get_sparse_laplacian(edges, torch.ones(self.n_items), self.n_items, normalization="rw")
        self.encoder = LightGCN_Encoder(config, dataset)
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 2)
        self.first.apply(xavier_normal_initialization)
        self.second.apply(xavier_uniform_initialization)
        self.started, self.score = get_local_time(), dict2str({"recall@20": 0.12345})
        self.stopped = early_stopping(0.1, 0.2, cur_step=3, max_step=3, bigger=True)
        self.twice = double(k)

    def calculate_loss(self, interaction):
        u, p = self.encoder([interaction[0], interaction[1]])
        _, n = self.encoder([interaction[0], interaction[2]])
        near = torch.sparse.mm(self.sparse, self.encoder.get_embedding()[1])
        loss = BPRLoss(gamma=1e-8)((u * p).sum(1), (u * n).sum(1))
        return loss + 1e-3 * EmbLoss(norm=2)(u, p) + 1e-4 * L2Loss()(u, n) + 0 * near.sum()

    def full_sort_predict(self, interaction):
        users, items = self.encoder.get_embedding()
        return users[interaction[0]] @ items.T
