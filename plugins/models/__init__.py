"""The recommenders that ship with mmrec-lmm: one file each, written to be read with its paper."""

from typing import Literal

from mmrec_lmm.api import ModelSpec, hookimpl

from .. import configs


@hookimpl
def mmrec_register_models() -> list[ModelSpec]:
    return [
        _spec(
            "VBPR",
            "matrix factorization with projected item features, BPR loss",
            "He & McAuley, AAAI 2016, arXiv:1510.01784",
        ),
        _spec(
            "MMGCN",
            "a graph convolution per modality, users' preferences learned for each",
            "Wei et al., ACM MM 2019, doi:10.1145/3343031.3351034",
            unread=("n_layers",),
        ),
        _spec(
            "MMGCL",
            "graph convolution of id and modalities, contrasted with a graph that lacks edges",
            "Yi et al., SIGIR 2022, doi:10.1145/3477495.3532027",
            unread=("mm_fusion_mode", "temp"),
        ),
        _spec(
            "SLMRec",
            "graph convolution of id and modalities, which self-supervision aligns",
            "Tao et al., IEEE TMM 2022, doi:10.1109/TMM.2022.3187556",
            negatives="none",
        ),
        _spec(
            "LATTICE",
            "collaborative filtering with item graphs learned from modalities",
            "Zhang et al., ACM MM 2021, arXiv:2104.09036",
        ),
        _spec(
            "FREEDOM",
            "frozen item graphs from modalities, and a user-item graph that each epoch prunes",
            "Zhou & Shen, ACM MM 2023, arXiv:2211.06924",
            unread=("feat_embed_dim", "weight_size", "lambda_coeff", "cf_model", "degree_ratio"),
        ),
        _spec(
            "BM3",
            "bootstrapped views of users, items and modalities, without negatives",
            "Zhou et al., WWW 2023, arXiv:2207.05969",
            unread=("feat_embed_dim",),
        ),
        _spec(
            "MGCN",
            "modalities purified by ids, propagated by item graphs, fused by attention and contrasted with ids",
            "Yu et al., ACM MM 2023, arXiv:2308.03588",
            unread=("lambda_coeff",),
        ),
        _spec(
            "BPR",
            "matrix factorization, BPR loss: a control without features",
            "Rendle et al., UAI 2009, arXiv:1205.2618",
            uses_features=False,
            negatives="several",
        ),
        _spec(
            "LightGCN",
            "linear graph convolution of ids: a control without features",
            "He et al., SIGIR 2020, arXiv:2002.02126",
            uses_features=False,
        ),
        _spec(
            "Pop",
            "by popularity, the same for all: a control without features and parameters",
            "",
            uses_features=False,
            negatives="none",
            reads_timestamps=f"{__name__}.pop:reads_timestamps",
        ),
        _spec(
            "ItemKNN",
            "items whose users a user's items share: a control without features and parameters",
            "Deshpande & Karypis, TOIS 2004, doi:10.1145/963770.963776",
            uses_features=False,
            negatives="none",
        ),
        _spec(
            "UserKNN",
            "items of the users who share a user's items: a control without features and parameters",
            "Herlocker et al., SIGIR 1999, doi:10.1145/312624.312682",
            uses_features=False,
            negatives="none",
        ),
        _spec(
            "EASE",
            "a linear model of items from items, solved exactly: a control without features and parameters",
            "Steck, WWW 2019, arXiv:1905.03375",
            uses_features=False,
            negatives="none",
        ),
    ]


def _spec(
    name: str,
    summary: str,
    paper: str,
    *,
    uses_features: bool = True,
    unread: tuple[str, ...] = (),
    negatives: Literal["one", "several", "none"] = "one",
    reads_timestamps: str | bool = False,
) -> ModelSpec:
    """The spec of a model whose file, class and configuration class have its name."""
    module = f"{__name__}.{name.lower()}"
    return ModelSpec(
        name=name,
        cls=f"{module}:{name}",
        config=f"{module}:{name}Config",
        summary=summary,
        paper=paper,
        uses_features=uses_features,
        configs=configs(),
        unread=unread,
        negatives=negatives,
        reads_timestamps=reads_timestamps,
    )
