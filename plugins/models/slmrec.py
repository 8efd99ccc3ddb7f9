"""SLMRec: self-supervised learning for multimedia recommendation (Tao et al., IEEE Transactions on Multimedia 2022,
doi:10.1109/TMM.2022.3187556).

user = W_U [P(X_id) ; P(X_image) ; P(X_text)]_u + b_U, an item likewise; score(u, i) = <user, item>  (multimodal_gcn.py)
loss = InfoNCE(user -> item; temp) + ssl_alpha ssl, both of unit length, where ssl is one of

FAC      aligns the propagated sources of the batch's items in a chain: the id is mapped into the image's space, from
         there into the audio's, then into the text's, and in each space contrasted with that modality
FD       contrasts two passes with dropout after every layer, users with users and items with items
FM       contrasts two passes, each with another source's item table replaced by zeros
FD+FM    both at once

Fidelity: tests compare FAC with MMRec's code to 1e-5; FD and FM stop with an error there, so ours follow the authors'
code (zltao/SLMRec), for any modalities. As there, FAC's dot products are not normalized, and its layers for audio exist
without audio. Scores are the plain product: the sigmoid of both codes keeps the order, but makes ties of large scores.
Vectors are computed from the current parameters, not from the last batch's. An item that lacks a modality has zeros
there after projection, and takes part in FAC with them. An item that is in a batch several times is computed once and
counted as often, which changes no value.
Shapes: B batch, R distinct items of a batch, U users, I items, D recdim, S sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize

from mmrec_lmm.api import (
    LAYERS,
    RATE,
    SIZE,
    WEIGHT,
    Batch,
    ConfigValueError,
    ItemFeatures,
    Limit,
    TrainingData,
    above,
    distinct,
)
from mmrec_lmm.graph import BipartiteGraph, Normalization, propagate
from mmrec_lmm.losses import info_nce

from .multimodal_gcn import MultimodalGCN, rows, short_name

#: The matrix S of each adj_type: D^-1/2 A D^-1/2, A, (D + 1)^-1 (A + 1), D^-1 A, D^-1 A + 1
_NORMALIZATIONS: Mapping[str, Normalization] = {
    "pre": "symmetric",
    "plain": "plain",
    "norm": "random_walk_with_self",
    "gcmc": "random_walk",
    "mean": "random_walk_plus_self",  # the authors' code takes any other word for this one
}


@dataclass(frozen=True)
class SLMRecConfig:
    """The authors' keys and point; MMRec's and LMM4Rec's grids both contain it."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "recdim": SIZE,
        "layer_num": LAYERS,
        "ssl_alpha": WEIGHT,
        "ssl_temp": above(0),
        "temp": above(0),
        "dropout_rate": RATE,
    }

    recdim: int = 64  # D
    layer_num: int = 3
    ssl_task: Literal["FAC", "FD", "FM", "FD+FM"] = "FAC"
    ssl_alpha: float = 0.1
    ssl_temp: float = 0.2
    temp: float = 0.2  # of the main loss
    dropout_rate: float = 0.3  # FD alone
    adj_type: Literal["pre", "plain", "norm", "gcmc", "mean"] = "pre"
    mm_fusion_mode: Literal["concat"] = "concat"  # MMRec's "mean" fails there: its readouts expect S D columns

    def __post_init__(self) -> None:
        for name in ("temp", "ssl_temp"):
            if getattr(self, name) <= 0:
                raise ConfigValueError(name, f"must be above 0, got {getattr(self, name)}")
        if not 0 <= self.dropout_rate < 1:
            raise ConfigValueError("dropout_rate", f"must be at least 0 and below 1, got {self.dropout_rate}")


class SLMRec(MultimodalGCN):
    """Needs at least one modality; takes any. The negatives of a user are the other users' positives in the batch."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: SLMRecConfig) -> None:
        readouts = "embedding_user_after_GCN", "embedding_item_after_GCN"
        super().__init__(data, features, config, width=config.recdim, layers=config.layer_num, readouts=readouts)
        self.task = config.ssl_task
        self.adjacency = BipartiteGraph(data).adjacency(_NORMALIZATIONS[config.adj_type])
        self.chain = self._build_chain(config.recdim) if self.task == "FAC" else []
        self.init_weights()

    def _build_chain(self, width: int) -> list[tuple[str, nn.Linear, nn.Linear]]:
        """FAC's layers into each modality's space: one from the space before it, one from the modality itself.

        Their names are the spaces' letters: g_iv_iva maps from (id, visual) to (id, visual, audio), and g_a_iva from
        audio. The text's space is half as wide; modalities that the authors don't have come before it.
        """
        chain, space = [], "i"
        further = [modality for modality in self.modalities if modality not in ("image", "audio", "text")]
        for modality in ("image", "audio", *further, "text"):
            own = short_name(modality)
            step, from_own = (nn.Linear(width, width // 2 if modality == "text" else width) for _ in range(2))
            self.add_module(f"g_{space}_{space + own}", step)
            self.add_module(f"g_{own}_{space + own}", from_own)
            chain.append((modality, step, from_own))
            space += own
        return chain

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        sources = self.sources()  # (I, S D)
        users = self.read_out("users", self.adjacency, self.readout_inputs("users", sources), batch.users)  # (B, D)
        ids, place, counts = distinct(batch.positives)  # (R,), (B,), (R,)
        if self.task == "FAC":  # needs each source of the items by itself
            states = self.propagate_sources("items", self.adjacency, sources, ids)  # (R, S D)
            items, ssl = self.readout("items")(states), self._alignment_loss(states, counts)
        else:
            items = self.read_out("items", self.adjacency, self.readout_inputs("items", sources), ids)  # (R, D)
            ssl = self._contrastive_loss(batch, sources)
        temperature = self.config.temp
        main = info_nce(normalize(users), normalize(items), temperature=temperature, positives=place, counts=counts)
        return {"main": main, "ssl": self.config.ssl_alpha * ssl}

    def _alignment_loss(self, states: Tensor, counts: Tensor | None) -> Tensor:
        """FAC, of the batch's distinct items with their propagated sources (R, S D), each `counts` (R,) times."""
        state, *own = states.split(self.width, dim=1)
        by_modality = dict(zip(self.modalities, own, strict=True))
        loss = states.new_zeros(())
        for modality, step, from_own in self.chain:
            state = step(state)
            if modality in by_modality:
                own_state, temperature = from_own(by_modality[modality]), self.config.ssl_temp
                loss = loss + info_nce(state, own_state, temperature=temperature, repeats=counts, counts=counts)
        return loss

    def _contrastive_loss(self, batch: Batch, sources: Tensor) -> Tensor:
        """FD, FM or both: InfoNCE between two views of the batch's users, and of its items."""
        tables: list[Tensor] = [sources, sources]
        if "FM" in self.task:
            masked = torch.randperm(1 + len(self.modalities))[:2].tolist()  # two different sources
            tables = [self._without(sources, source) for source in masked]
        view = self._view_with_dropout if "FD" in self.task else self._view
        (users, items), (users_2, items_2) = (view(batch, table) for table in tables)
        temperature = self.config.ssl_temp
        return info_nce(users, users_2, temperature=temperature) + info_nce(items, items_2, temperature=temperature)

    def _without(self, sources: Tensor, source: int) -> Tensor:
        """The sources (I, S D), with zeros for one of them."""
        keep = sources.new_ones(sources.shape[1])
        keep[source * self.width : (source + 1) * self.width] = 0
        return sources * keep

    def _view(self, batch: Batch, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Users and positives of a batch at unit length (B, D), without dropout."""
        users = self.read_out("users", self.adjacency, self.readout_inputs("users", sources), batch.users)
        items = self.read_out("items", self.adjacency, self.readout_inputs("items", sources), batch.positives)
        return normalize(users), normalize(items)

    def _view_with_dropout(self, batch: Batch, sources: Tensor) -> tuple[Tensor, Tensor]:
        """`_view` with dropout of every layer's output, before it is averaged and enters the next layer."""
        x = torch.cat([self.embedding_user.weight.repeat(1, 1 + len(self.modalities)), sources])  # (N, S D)
        total = x
        for _ in range(self.layers):
            x = dropout(propagate(self.adjacency, x), self.config.dropout_rate)
            total = total + x
        users, items = (total / (1 + self.layers)).split([self.n_users, self.n_items])
        users = self.readout("users")(rows(users, batch.users))
        items = self.readout("items")(rows(items, batch.positives))
        return normalize(users), normalize(items)
