"""A filter of frequencies from a folder that the file puts into sys.path, and a layer from a folder beside models."""

import os
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "blocks"))
import importlib
from importlib import import_module

from utils.utils import *
import torch
import torch.nn as nn
import torch.nn.functional as F

from common.abstract_recommender import GeneralRecommender
from frequency_filter import Filter
from layers.sums import Sum

LightGCN = getattr(importlib.import_module("models.lightgcn"), "LightGCN")
assert import_module(".lightgcn", package="models").LightGCN is LightGCN


class SPECTRAL(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        for key in ("n_layers", "own_dropout"):
            setattr(self, key, config[key])
        self.tau = config.final_config_dict.get("own_tau", 0.2)
        self.density = 1 - dataset.sparsity
        self.read = sum(batch.shape[1] for batch in dataset)
        assert self.read == dataset.dataset.inter_num == sum(map(len, dataset.history_users_per_i.values()))
        dim = config["embedding_size"]
        self.users, self.items = nn.Embedding(self.n_users, dim), nn.Embedding(self.n_items, dim)
        self.filter, self.trs, self.sum = Filter(dim), nn.Linear(self.t_feat.shape[1], dim), Sum()
        self.spectrum = None

    def forward(self):
        self.spectrum = self.filter(torch.fft.rfft(self.trs(self.t_feat), dim=1, norm="ortho"))
        return self.items.weight + torch.fft.irfft(self.spectrum, n=self.items.weight.shape[1], dim=1, norm="ortho")

    def calculate_loss(self, interaction):
        items = self.forward()
        u, p, n = self.users(interaction[0]), items[interaction[1]], items[interaction[2]]
        return -torch.mean(F.logsigmoid((u * p).sum(1) - (u * n).sum(1)))

    def full_sort_predict(self, interaction):
        content = torch.fft.irfft(self.spectrum, n=self.items.weight.shape[1], dim=1, norm="ortho")
        return torch.matmul(self.users(interaction[0]), (self.items.weight + content).transpose(0, 1))
