"""The host's own configuration keys: MMRec's names where MMRec has them, with types and defaults.

Models and encoders own theirs (the dataclass of their spec). A default here is MMRec's unless the comment says why not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .choices import Protocol


@dataclass(frozen=True)
class Settings:
    """Every value that the host reads from YAML or the command line."""

    # data
    data_path: str = "data"  # folder that holds one folder per data set
    inter_file_name: str | None = None  # default: <data set>.inter
    vision_feature_file: str = "image_feat.npy"
    text_feature_file: str = "text_feat.npy"
    USER_ID_FIELD: str = "userID"
    ITEM_ID_FIELD: str = "itemID"
    inter_splitting_label: str = "x_label"
    field_separator: str = "\t"
    filter_out_cod_start_users: bool = True  # drop valid and test rows of users without a training row (MMRec's typo)
    text_fields: tuple[str, ...] = ("title", "brand", "categories", "description")  # joined in this order for encoders
    missing: Literal["zero", "mean"] = "zero"  # features of absent items; MMRec fills with the mean
    normalize: Literal["none", "unit", "centered", "standard"] = (
        "none"  # of feature files; MMRec takes them as they are
    )

    # training
    seed: int = 999
    epochs: int = 1000
    stopping_step: int = 20  # stop after more than this many evaluations without improvement
    min_steps: int = 2000  # optimizer steps before patience starts to count; MMRec: 0 (docs/findings.md measures it)
    train_batch_size: int = 2048  # rows (user, positive, negative)
    learner: Literal["adam", "sgd", "adagrad", "rmsprop"] = "adam"
    learning_rate: float = 1e-3
    learning_rate_scheduler: tuple[float, ...] = (1.0, 50.0)  # rate x s0 ** (epoch / s1)
    weight_decay: float = 0.0  # L2 added to the gradient, as in Adam and not AdamW
    clip_grad_norm: Mapping[str, Any] | None = None  # {max_norm: 5, norm_type: 2}
    zero_grad_to_none: bool = True  # False: torch 1's zero-filled gradients, under which Adam's momentum goes on moving

    # evaluation
    eval_step: int = 1  # epochs between evaluations
    eval_batch_size: int = 4096  # users scored at once by models that aren't dot products
    metrics: tuple[str, ...] = ("Recall", "NDCG", "Precision", "MAP")
    topk: tuple[int, ...] = (5, 10, 20, 50)
    valid_metric: str = "Recall@20"
    mask_valid_in_test: bool = False  # MMRec leaves validation items among the candidates when it tests
    save_recommended_topk: bool = True  # keep each user's top items in the run's folder
    protocol: Protocol = "default"  # mmrec: show beside ours what selecting on test would give

    # machine: nothing here but `threads` and `encode_dtype` can change a number
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    use_gpu: bool = True  # MMRec's switch: False means cpu
    gpu_id: int = 0
    threads: int = 0  # CPU threads of torch; 0: as many as torch chooses. Sums depend on it, so it is part of a run
    workers: int = 0  # processes that prepare items for an encoder
    encode_batch_size: int = 64  # items that an encoder takes at once, 256 at most; halved where memory runs out
    encode_dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of its arithmetic; halves suit a GPU
    encode_compile: bool = False  # torch.compile it: a minute at first, then faster
    recompute: bool = False  # an encoder in training computes its blocks twice rather than keep what they made
    state: str = "INFO"  # log level


#: Settings that are no part of a run's identity: they name a place or a machine and can't change a number, or shape the
#: features, whose fingerprints are part of it. `protocol` decides what is shown beside a run, never what it keeps.
NOT_IDENTITY = frozenset({
    "text_fields", "missing", "normalize",
    "data_path", "inter_file_name", "vision_feature_file", "text_feature_file", "device", "use_gpu", "gpu_id",
    "workers", "encode_batch_size", "encode_dtype", "encode_compile", "recompute", "state", "save_recommended_topk",
    "eval_batch_size", "protocol",
})  # fmt: skip

#: Keys that MMRec's own files carry and nothing here reads: accepted, and listed as unused.
MMREC_UNUSED = frozenset({
    "NEG_PREFIX", "TIME_FIELD", "RATING_FIELD", "alpha1", "alpha2", "beta", "checkpoint_dir", "end2end", "eval_type",
    "init", "is_multimodal_model", "recommend_topk", "reg", "req_training", "save_model", "training_neg_sample_num",
    "use_full_sampling", "use_neg_sampling", "use_neighborhood_loss", "user_graph_dict_file", "vocab_size",
    "item_graph_dict_file", "data.input.dataset", "adj_type", "candidate_items", "batch_size",
})  # fmt: skip
