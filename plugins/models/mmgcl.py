"""MMGCL: multi-modal graph contrastive learning for micro-video recommendation (Yi et al., SIGIR 2022,
doi:10.1145/3477495.3532027).

user = W_U [P(X_id) ; P(X_image) ; P(X_text)]_u + b_U, an item likewise; score(u, i) = <user, item>  (multimodal_gcn.py)
loss = BPR + ssl, where ssl contrasts views of the graph at unit length:

released  2 ssl_alpha InfoNCE(users_1 -> items_1), in view 1: without a share dropout_rate of the edges, drawn again for
          each batch. LMM4Rec's code adds nothing else to its loss: it computes the same term twice (the second time
          with view 1 instead of view 2), and never adds its term of challenging negatives.
paper     ssl_alpha (InfoNCE(users_1 -> users_2) + InfoNCE(items_1 -> items_2)), where view 2 masks one modality, drawn
          with probabilities mask_p: its table propagates on a graph without a share dropout_rate of users and of items.
          The item term's denominator also holds challenging negatives: items with the negative's features in place
          of some of the positive's, namely in the last modality (view 1) and in all of them (view 2).

With `dense: false` it is UGNN, the default model of LMM4Rec: s_m = f_i, the features as they are, without projection
and normalization, so they must be as wide as the ids.

Fidelity: `released` is the default, since the published numbers come from that code; tests compare it with that code's
values to 1e-5, at dropout_rate 0, and for UGNN with edges dropped, too. It skips view 2, which changes no value there.
`paper` is our reading of the published description; the released code masks the image where it drew the text, which is
corrected here. Both take any modalities. Scores are the plain product: the code's sigmoid keeps the order, but makes
ties of large scores. Vectors are computed from the current parameters, not from the last batch's. A user who is in a
batch twice is their own negative, as in the code. UGNN's features train with their encoder by the gradient of the loss;
in LMM4Rec's code none reaches them, and its term of the encoder's own loss is a constant. Features aren't scaled: those
of a large encoder have far longer rows than the ids at the start.
Shapes: B batch, U users, I items, D latent_dim, S sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmrec_lmm.api import (
    ADDED,
    LAYERS,
    RATE,
    SIZE,
    WEIGHT,
    Batch,
    ConfigError,
    ConfigValueError,
    ItemFeatures,
    Limit,
    TrainingData,
    above,
    each,
)
from mmrec_lmm.graph import BipartiteGraph, SparseMatrix, propagate_mean_to
from mmrec_lmm.losses import bpr, info_nce

from .multimodal_gcn import MultimodalGCN, rows


@dataclass(frozen=True)
class MMGCLConfig:
    """The keys of LMM4Rec's code, at a point of its grid."""

    LIMITS: ClassVar[Mapping[str, Limit]] = {
        "latent_dim": SIZE,
        "layer_num": LAYERS,
        "ssl_alpha": WEIGHT,
        "ssl_temp": above(0),
        "dropout_rate": RATE,
        "mask_p": each(WEIGHT),
    }

    latent_dim: int = 64  # D
    layer_num: int = 3
    variant: Literal["released", "paper"] = "released"
    ssl_task: Literal["ED+MM+CN"] = "ED+MM+CN"  # edge dropout, modality masking, challenging negatives
    ssl_alpha: float = 0.4
    ssl_temp: float = 0.2
    dropout_rate: float = 0.3
    dense: bool = field(default=True, metadata=ADDED)  # false, UGNN: features of latent_dim columns, as they are
    mask_p: tuple[float, ...] = (0.1, 0.9)  # probabilities: image, text, others by name (not given: the mean of these)

    def __post_init__(self) -> None:
        if self.ssl_temp <= 0:
            raise ConfigValueError("ssl_temp", f"must be above 0, got {self.ssl_temp}")
        if not 0 <= self.dropout_rate < 1:
            raise ConfigValueError("dropout_rate", f"must be at least 0 and below 1, got {self.dropout_rate}")
        if not self.mask_p or min(self.mask_p) < 0 or sum(self.mask_p) <= 0:
            raise ConfigValueError("mask_p", f"must be numbers of at least 0, not all 0, got {list(self.mask_p)}")


class MMGCL(MultimodalGCN):
    """Needs at least one modality; takes any."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: MMGCLConfig) -> None:
        readouts = "read_user", "read_item"
        super().__init__(
            data,
            features,
            config,
            width=config.latent_dim,
            layers=config.layer_num,
            readouts=readouts,
            dense=config.dense,
        )
        if not config.dense and set(features.dims.values()) != {config.latent_dim}:
            widths = ", ".join(f"{modality} {width}" for modality, width in features.dims.items())
            raise ConfigError(
                f"MMGCL: expected features of latent_dim {config.latent_dim} columns where dense is false, "
                f"got {widths}; try {_cure(features)}"
            )
        self.graph = BipartiteGraph(data)
        self.adjacency = self.graph.adjacency("symmetric")
        # By modality (M,); on the host, where the draw decides what is computed
        self.mask_probabilities = _mask_probabilities(self.modalities, config.mask_p)
        self.init_weights()

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        sources = self.sources()  # (I, S D)
        of_users, of_items = self.readout_inputs("users", sources), self.readout_inputs("items", sources)
        users = self.read_out("users", self.adjacency, of_users, batch.users)  # (B, D)
        items = self.read_out("items", self.adjacency, of_items, torch.cat([batch.positives, batch.negatives]))
        positives, negatives = items.split(len(batch))  # (B, D) each
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1), gamma=1e-5)}
        if self.config.variant == "paper":
            return terms | {"ssl": self.config.ssl_alpha * self._contrastive_loss(batch, sources)}
        view = self._drop_edges()
        users = normalize(self.read_out("users", view, of_users, batch.users))
        items = normalize(self.read_out("items", view, of_items, batch.positives))
        contrast = info_nce(users, items, temperature=self.config.ssl_temp)
        return terms | {"ssl": 2 * self.config.ssl_alpha * contrast}

    def _drop_edges(self) -> SparseMatrix:
        """View 1's adjacency."""
        return self.graph.adjacency("symmetric", kept=self.graph.drop_edges(self.config.dropout_rate))

    def _contrastive_loss(self, batch: Batch, sources: Tensor) -> Tensor:
        """The paper's self-supervision: two views of users, and of items with challenging negatives."""
        modalities = range(1, 1 + len(self.modalities))  # their places among the sources; the id is source 0
        masked = modalities[int(torch.multinomial(self.mask_probabilities, 1))]
        first = [self._drop_edges()] * (1 + len(modalities))
        second = [self.adjacency] * (1 + len(modalities))
        second[masked] = self.graph.adjacency("symmetric", kept=self.graph.drop_nodes(self.config.dropout_rate))
        users, items, negatives = self._view(batch, sources, first, borrowed=modalities[-1:])
        users_2, items_2, negatives_2 = self._view(batch, sources, second, borrowed=modalities)
        candidates = torch.cat([items_2, negatives, negatives_2])  # (3B, D)
        temperature = self.config.ssl_temp
        return info_nce(users, users_2, temperature=temperature) + info_nce(items, candidates, temperature=temperature)

    def _view(
        self, batch: Batch, sources: Tensor, matrices: Sequence[SparseMatrix], *, borrowed: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Users, positives and challenging negatives of a batch at unit length (B, D), each source on its own matrix.

        A challenging negative is the positive with the negative's sources at the places `borrowed`.
        """
        users, positives, challenging = [], [], []
        for place, (matrix, table) in enumerate(zip(matrices, sources.split(self.width, dim=1), strict=True)):
            of_users, of_items = (
                propagate_mean_to(side, matrix, self.embedding_user.weight, table, self.layers)
                for side in ("users", "items")
            )
            users.append(rows(of_users, batch.users))
            positives.append(rows(of_items, batch.positives))
            challenging.append(rows(of_items, batch.negatives) if place in borrowed else positives[-1])
        return (
            normalize(self.readout("users")(torch.cat(users, dim=1))),
            normalize(self.readout("items")(torch.cat(positives, dim=1))),
            normalize(self.readout("items")(torch.cat(challenging, dim=1))),
        )


def _cure(features: ItemFeatures) -> str:
    widths = set(features.dims.values())
    return f"--latent_dim={min(widths)}" if len(widths) == 1 else "--dense=true, or an encoder of one width"


def _mask_probabilities(modalities: Sequence[str], mask_p: Sequence[float]) -> Tensor:
    """The probability that each modality is masked, in the order of `modalities`; `mask_p` starts with image, text."""
    known = ["image", "text", *(modality for modality in modalities if modality not in ("image", "text"))]
    given = dict(zip(known, mask_p, strict=False))
    probabilities = torch.tensor([given.get(modality, sum(mask_p) / len(mask_p)) for modality in modalities])
    if not probabilities.any():
        raise ConfigError(
            f"mask_p: expected a number above 0 for one of the run's modalities ({', '.join(modalities)}), "
            f"got {list(mask_p)}"
        )
    return probabilities
