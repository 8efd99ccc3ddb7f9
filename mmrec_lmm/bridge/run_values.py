"""What a model file is constructed with: MMRec's configuration object and its loader of training rows.

Shapes: U users, I items, N interactions.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.sampling import TrainingRows
from ..types import TrainingData

#: MMRec's keys that are settings of the host's; its other settings have no meaning to a model file.
HOST_KEYS = (
    "inter_file_name", "vision_feature_file", "text_feature_file", "USER_ID_FIELD", "ITEM_ID_FIELD",
    "inter_splitting_label", "TIME_FIELD", "field_separator", "filter_out_cod_start_users", "seed", "epochs",
    "stopping_step", "train_batch_size", "learner", "learning_rate", "learning_rate_scheduler", "weight_decay",
    "clip_grad_norm", "eval_step", "eval_batch_size", "metrics", "topk", "valid_metric", "save_recommended_topk",
    "gpu_id", "state",
)  # fmt: skip

#: Keys of MMRec's overall.yaml and dataset/*.yaml that the host hasn't, with their values there.
OVERALL: Mapping[str, Any] = {
    "embedding_size": 64,
    "is_multimodal_model": True,
    "end2end": False,
    "use_neg_sampling": True,
    "use_full_sampling": False,
    "training_neg_sample_num": 1,
    "req_training": True,
    "NEG_PREFIX": "neg__",
    "user_graph_dict_file": "user_graph_dict.npy",
    "item_graph_dict_file": "item_graph_dict_2.npy",
}


class Config:
    """`config[key]`: a value, or None for a key without one, as in MMRec, which isn't `in` it. `read` has the keys that
    were asked for.

    `on_read` is called with each key before its value is returned.
    """

    def __init__(self, values: Mapping[str, Any], on_read: Callable[[str], None] = lambda key: None) -> None:
        self.final_config_dict = {key: _as_yaml(value) for key, value in values.items() if value is not None}
        self.read: dict[str, None] = {}
        self._on_read = on_read

    def __getitem__(self, key: str) -> Any:
        self.read[key] = None
        self._on_read(key)
        return self.final_config_dict.get(key)

    def __deepcopy__(self, memo: Any) -> "Config":
        """Values of its own, for a part of the model; what is read of it is read of this one too."""
        found = copy.copy(self)
        found.final_config_dict = copy.deepcopy(self.final_config_dict, memo)
        return found

    def __setitem__(self, key: str, value: Any) -> None:
        self.final_config_dict[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self.final_config_dict

    def get(self, key: str, default: Any = None) -> Any:
        value = self[key]
        return default if value is None else value

    def __str__(self) -> str:
        return "\n".join(f"{key}={value}" for key, value in self.final_config_dict.items())

    @property
    def without_value(self) -> tuple[str, ...]:
        """The keys that were read and have no value."""
        return tuple(key for key in self.read if self.final_config_dict.get(key) is None)


def _as_yaml(value: Any) -> Any:
    """A list where the host keeps a tuple: model files add lists."""
    if isinstance(value, tuple | list):
        return [_as_yaml(one) for one in value]
    return value


class TrainingTable:
    """The training rows as MMRec's RecDataset, with what model files ask of it."""

    def __init__(self, data: TrainingData, config: Config) -> None:
        self.config = config
        self.user_num, self.item_num, self.inter_num = data.n_users, data.n_items, len(data.train)
        self.uid_field, self.iid_field = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.dataset_name = config["dataset"]
        self.sparsity = 1 - self.inter_num / (self.user_num * self.item_num)
        self._train = data.train

    def get_user_num(self) -> int:
        return self.user_num

    def get_item_num(self) -> int:
        return self.item_num

    def __len__(self) -> int:
        return self.inter_num

    @cached_property
    def df(self) -> Any:
        """A pandas frame of users and items, in file order."""
        import pandas as pd

        return pd.DataFrame({self.uid_field: self._train.users, self.iid_field: self._train.items})

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"expected what a data set of training rows has, got {name}; it has {_public(self)}")


class TrainingLoader:
    """MMRec's loader, as a model's constructor gets it. `features` are by modality, on the run's device."""

    def __init__(self, data: TrainingData, config: Config, features: Mapping[str, Tensor]) -> None:
        self.config, self.features = config, features
        self.dataset = TrainingTable(data, config)
        self.batch_size, self.device = config["train_batch_size"], config["device"]
        self.sparsity = self.dataset.sparsity
        self._data, self._train = data, data.train
        self._passes = 0

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """An epoch's batches (3, B), (2, B) without negatives, as `calculate_loss` gets them; other ones each time."""
        negatives = 1 if self.config["use_neg_sampling"] else 0
        rows = TrainingRows(
            self._train, self._data.n_users, self.batch_size, self.config["device"], n_negatives=negatives
        )
        generator = torch.Generator().manual_seed(self.config["seed"] + self._passes)
        self._passes += 1
        for batch in rows.epoch(generator):
            yield torch.stack([batch.users, batch.positives, *([batch.negatives] if negatives else [])])

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> Any:
        """The training rows as a SciPy matrix (U, I) of float64 ones; rows that occur twice add up in csr."""
        from scipy.sparse import coo_matrix

        if value_field is not None:
            raise ValueError(f"inter_matrix: expected no value_field, as only pairs are read, got {value_field!r}")
        shape = self.dataset.user_num, self.dataset.item_num
        matrix = coo_matrix((np.ones(len(self._train)), (self._train.users, self._train.items)), shape=shape)
        if form not in ("coo", "csr"):
            raise NotImplementedError(f"inter_matrix: expected the form coo or csr, got {form!r}")
        return matrix if form == "coo" else matrix.tocsr()

    @cached_property
    def history_items_per_u(self) -> dict[int, set[int]]:
        """The training items of each user who has any."""
        return _grouped(self._train.users, self._train.items)

    @cached_property
    def history_users_per_i(self) -> dict[int, set[int]]:
        """The training users of each item that has any."""
        return _grouped(self._train.items, self._train.users)

    @cached_property
    def all_items(self) -> list[int]:
        """The items that occur in training."""
        return [int(item) for item in np.unique(self._train.items)]

    @cached_property
    def all_uids(self) -> np.ndarray:
        """The users who occur in training."""
        return np.unique(self._train.users)

    @property
    def all_items_set(self) -> set[int]:
        return set(self.all_items)

    @property
    def all_users_set(self) -> set[int]:
        return set(self.all_uids.tolist())

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"expected what a loader of training rows has, got {name}; it has {_public(self)}")


def _grouped(keys: np.ndarray, values: np.ndarray) -> dict[int, set[int]]:
    """The distinct `values` (N,) of each of the `keys` (N,)."""
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    parts = np.split(values[order], starts[1:])
    return {int(key): set(part.tolist()) for key, part in zip(found, parts, strict=True)}


def _public(thing: Any) -> str:
    return ", ".join(sorted(name for name in {*dir(type(thing)), *vars(thing)} if not name.startswith("_")))
