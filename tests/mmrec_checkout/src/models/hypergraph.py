"""Hyperedges of content that items and users belong to by Gumbel noise, beside a graph that an old SciPy builds."""

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch_scatter import scatter_add

from common.abstract_recommender import GeneralRecommender


class HYPERGRAPH(GeneralRecommender):
    def __init__(self, config, dataset):
        super(HYPERGRAPH, self).__init__(config, dataset)
        dim, self.n_layers, self.tau = config["embedding_size"], config["n_ui_layers"], 0.2
        self.n_nodes = self.n_users + self.n_items
        self.inter = dataset.inter_matrix(form="coo").astype(np.float32)
        self.adj = self.tensor_of(self.inter)
        self.degrees, self.norm_adj = self.propagation()
        self.user_embedding = nn.Embedding(self.n_users, dim)
        self.item_id_embedding = nn.Embedding(self.n_items, dim)
        self.drop = nn.Dropout(p=1 - config["keep_rate"])
        if self.v_feat is not None:
            self.image_embedding = nn.Embedding.from_pretrained(self.v_feat, freeze=True)
            self.v_hyper = nn.Parameter(nn.init.xavier_uniform_(torch.zeros(self.v_feat.shape[1], config["hyper_num"])))

    def tensor_of(self, matrix):
        place = torch.LongTensor(np.array([matrix.row, matrix.col]))
        return torch.sparse.FloatTensor(place, torch.FloatTensor(matrix.data), torch.Size(matrix.shape)).to(self.device)

    def propagation(self):
        A = sp.dok_matrix((self.n_nodes, self.n_nodes), dtype=np.float32)
        users, items = self.inter.row, self.inter.col + self.n_users
        data = dict(zip(zip(users, items), [1] * self.inter.nnz))
        data.update(dict(zip(zip(items, users), [1] * self.inter.nnz)))
        A._update(data)
        degrees = np.array((A > 0).sum(axis=1).flatten())[0] + 1e-7
        D = sp.diags(np.power(degrees, -0.5))
        L = sp.coo_matrix(D * A * D)
        assert np.allclose(L.tocsr().A, L.tocsr().A.T)
        counted = scatter_add(torch.ones(L.nnz), torch.from_numpy(L.row).long(), dim=0, dim_size=self.n_nodes)
        return torch.FloatTensor(1.0 / (counted + 1e-7)).to(self.device), self.tensor_of(L)

    def forward(self):
        layers = [torch.cat((self.user_embedding.weight, self.item_id_embedding.weight), dim=0)]
        for _ in range(self.n_layers):
            layers += [torch.sparse.mm(self.norm_adj, layers[-1])]
        of_items = torch.mm(self.image_embedding.weight, self.v_hyper)
        of_users = F.gumbel_softmax(torch.mm(self.adj, of_items), self.tau, dim=1, hard=False)
        of_items = F.gumbel_softmax(of_items, self.tau, dim=1, hard=False)
        edges = torch.mm(self.drop(of_items).t(), self.item_id_embedding.weight)
        side = F.normalize(torch.cat((torch.mm(of_users, edges), torch.mm(of_items, edges))))
        return torch.split(torch.stack(layers, dim=1).mean(dim=1) + side, [self.n_users, self.n_items], dim=0)

    def calculate_loss(self, interaction):
        users, items = self.forward()
        u, p, n = users[interaction[0]], items[interaction[1]], items[interaction[2]]
        return -torch.mean(F.logsigmoid((u * p).sum(1) - (u * n).sum(1)))

    def full_sort_predict(self, interaction):
        users, items = self.forward()
        return torch.matmul(users[interaction[0]], items.transpose(0, 1))
