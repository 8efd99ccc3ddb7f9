"""An encoder, and a slow copy of it that has a configuration of its own and follows after each epoch."""

import copy

import torch
import torch.nn as nn
from torch.nn.functional import cosine_similarity

from common.abstract_recommender import GeneralRecommender
from common.encoders import LightGCN_Encoder


class MOMENTUM(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.config, own = config, copy.deepcopy(config)
        own["n_layers"] = 1
        self.online = LightGCN_Encoder(own, dataset)
        self.online.config, self.online.dataset = own, dataset
        self.target = copy.deepcopy(self.online)
        for parameter in self.target.parameters():
            parameter.requires_grad = False
        self.predictor = nn.Linear(config["embedding_size"], config["embedding_size"])
        self.tied = self.online.embedding_dict["user_emb"]
        self.turned = nn.Parameter(torch.rand(3, config["embedding_size"]).t())
        self.rate = config["momentum"]

    def calculate_loss(self, interaction):
        u, i = self.online(interaction)
        with torch.no_grad():
            ut, it = self.target(interaction)
        loss = 2 - cosine_similarity(self.predictor(u), it).mean() - cosine_similarity(self.predictor(i), ut).mean()
        if not hasattr(self, "mean"):
            self.register_buffer("mean", torch.zeros_like(loss.detach()))
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        return loss + 1e-4 * (u.square().mean() + self.turned.square().mean())

    @torch.no_grad()
    def post_epoch_processing(self):
        for online, target in zip(self.online.parameters(), self.target.parameters()):
            target.data = target.data * self.rate + online.data * (1 - self.rate)
        return "the copy moved"

    def full_sort_predict(self, interaction):
        u, i = self.online.get_embedding()
        return self.predictor(u)[interaction[0]] @ i.t() + 0 * self.mean
