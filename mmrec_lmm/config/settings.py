"""The host's own configuration keys: MMRec's names where MMRec has them, with types and defaults.

Models and encoders have their own (the dataclass of their spec). A default is MMRec's unless the comment says why not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from ..typed_json import plain
from ..types import Background
from .choices import Protocol

_T = TypeVar("_T")


def _deciding(what: str) -> Callable[[_T], _T]:
    """A function that declares a setting by its default value, and what it decides instead of training."""
    return lambda default: field(default=default, metadata={"decides": what})


place = _deciding("place")  # of the inputs, or of their making: only their content is part of a run's id
reading = _deciding("reading")  # how a data set's tables are read
splitting = _deciding("splitting")  # how labels are drawn: the labels' hash is part of a run's id instead
shaping = _deciding("shaping")  # of features, whose fingerprints are part of a run's id instead
harmless = _deciding("nothing")  # no number depends on it
shaping_if_set = _deciding("shaping, if set")  # as shaping; a study's record from before it keeps its name
if_set = _deciding("training, if set")  # no part of a run's id at its default: runs from before it keep theirs


@dataclass(frozen=True)
class Settings:
    """Every value that the host reads from YAML or the command line.

    A setting with a plain default decides training, and is part of a run's id.
    """

    # data
    data_path: str = place("data")  # folder that holds one folder per data set
    inter_file_name: str | None = place(None)  # default: <data set>.inter
    vision_feature_file: str = place("image_feat.npy")
    text_feature_file: str = place("text_feat.npy")
    USER_ID_FIELD: str = reading("userID")
    ITEM_ID_FIELD: str = reading("itemID")
    inter_splitting_label: str = reading("x_label")
    TIME_FIELD: str = splitting("timestamp")
    field_separator: str = reading("\t")
    split: str | None = splitting(None)  # the rule that draws labels, `list splits`; None: the file's own
    split_seed: int = splitting(0)
    filter_out_cod_start_users: bool = reading(True)  # users without training rows leave valid and test (its typo)
    text_fields: tuple[str, ...] = shaping(("title", "brand", "categories", "description"))  # joined for encoders
    image_background: Background = shaping("white")  # noqa: RUF009 - of transparent images; none drops transparency
    missing: Literal["zero", "mean"] = shaping("zero")  # features of absent items; MMRec fills with the mean
    normalize: Literal["none", "unit", "centered", "standard"] = shaping("none")  # of features; MMRec: as they are
    whiten: bool = shaping_if_set(False)  # columns of features uncorrelated, of deviation 1

    # training
    seed: int = 999
    epochs: int = 1000
    stopping_step: int = 20  # stop after more than this many evaluations without improvement
    min_steps: int = 2000  # optimizer steps before patience starts to count; MMRec: 0 (docs/findings.md measures it)
    train_batch_size: int = 2048  # rows (user, positive, negatives)
    sampler: str = if_set("uniform")  # of negatives; `list samplers` shows them
    n_negatives: int = if_set(1)  # drawn per positive, for a model that takes several
    learner: Literal["adam", "sgd", "adagrad", "rmsprop"] = "adam"
    learning_rate: float = 1e-3
    learning_rate_scheduler: tuple[float, ...] = (1.0, 50.0)  # rate x s0 ** (epoch / s1)
    weight_decay: float = 0.0  # L2 added to the gradient, as in Adam and not AdamW
    clip_grad_norm: Mapping[str, Any] | None = None  # {max_norm: 5, norm_type: 2}
    zero_grad_to_none: bool = True  # False: torch 1's zero-filled gradients, under which Adam's momentum goes on moving

    # evaluation
    eval_step: int = 1  # epochs between evaluations
    valid_users: int = if_set(0)  # epochs are selected on so many users of validation, drawn once; 0: on all
    eval_batch_size: int = harmless(4096)  # users scored at once by models that aren't dot products
    metrics: tuple[str, ...] = ("Recall", "NDCG", "Precision", "MAP")
    topk: tuple[int, ...] = (5, 10, 20, 50)
    valid_metric: str = "Recall@20"
    mask_valid_in_test: bool = False  # MMRec leaves validation items among the candidates when it tests
    save_recommended_topk: bool = harmless(True)  # keep each user's top items in the run's folder
    protocol: Protocol = harmless("default")  # noqa: RUF009 - mmrec: also show what selecting on test would give

    # machine
    device: str = place("auto")  # auto, cpu, cuda, cuda:1, mps
    use_gpu: bool = harmless(True)  # MMRec's switch: False means cpu
    gpu_id: int = harmless(0)
    threads: int = 0  # CPU threads of torch; 0: as many as torch chooses. Sums depend on it, so it is part of a run
    workers: int | None = harmless(None)  # processes that prepare items for an encoder; None: by device
    encode_batch_size: int | None = harmless(None)  # items encoded at once, 256 at most; None: by device
    encode_dtype: Literal["float32", "bfloat16", "float16"] = shaping("float32")  # of its arithmetic; halves suit a GPU
    encode_compile: bool = harmless(False)  # torch.compile it: a minute at first, then faster
    recompute: bool = harmless(False)  # an encoder in training computes its blocks twice, to keep less
    checkpoint_seconds: float = harmless(600.0)  # at least, between two checkpoints; 0: one after each evaluation
    state: str = harmless("INFO")  # log level


def _that_decide(*what: str) -> frozenset[str]:
    return frozenset(setting.name for setting in fields(Settings) if setting.metadata.get("decides") in what)


_SHAPING_IF_SET = _that_decide("shaping, if set")
NOT_IDENTITY = _that_decide("place", "splitting", "shaping", "nothing") | _SHAPING_IF_SET  # no part of a run's id
IF_SET = _that_decide("training, if set")  # part of a run's id unless it has its default
OF_INPUTS = _that_decide(
    "place", "reading", "splitting", "shaping", "shaping, if set"
)  # a run's inputs depend on these alone
OF_SPLIT = _that_decide("splitting")
#: Settings that say where inputs are, or how they are computed: no number depends on them, but on the inputs' content.
OF_NO_NUMBER = _that_decide("place", "nothing")
OF_FILES = frozenset({"inter_file_name", "vision_feature_file", "text_feature_file"})  # those that name the inputs
OF_FEATURES = _that_decide("shaping") | _SHAPING_IF_SET


def identifying(settings: Settings, *, and_also: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The settings, plain, that are part of a run's id, and those of `and_also`."""
    at_default = {name for name in IF_SET | _SHAPING_IF_SET if getattr(settings, name) == getattr(Settings, name)}
    left_out = (NOT_IDENTITY - and_also) | at_default
    return {name: value for name, value in plain(settings).items() if name not in left_out}


#: Keys that MMRec's own files carry and nothing here reads: accepted, and listed as unused.
MMREC_UNUSED = frozenset({
    "NEG_PREFIX", "RATING_FIELD", "alpha1", "alpha2", "beta", "checkpoint_dir", "end2end", "eval_type",
    "init", "is_multimodal_model", "recommend_topk", "reg", "req_training", "save_model", "training_neg_sample_num",
    "use_full_sampling", "use_neg_sampling", "use_neighborhood_loss", "user_graph_dict_file", "vocab_size",
    "item_graph_dict_file", "data.input.dataset", "adj_type", "candidate_items", "batch_size",
})  # fmt: skip
