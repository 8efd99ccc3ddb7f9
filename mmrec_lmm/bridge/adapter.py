"""The host's Recommender around a model file's class: batches, losses, scores, epochs and saved state.

Shapes: B batch, I items, F feature width.
"""

import functools
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..config.settings import Settings
from ..errors import NotApplicable, PluginError, RunError
from ..formatting import first_few
from ..plugin.contracts import Recommender, Scorer
from ..plugin.item_features import ItemFeatures
from ..types import Batch, RunSpec, TrainingData
from .data_folder import DataFolder
from .model_file import FEATURE_NAMES, ModelFile
from .run_values import HOST_KEYS, OVERALL, Config, TrainingLoader
from .scope import Streams, process_kept, running
from .state import Attributes

logger = logging.getLogger(__name__)

_FEATURE_FILES = {"image": "vision_feature_file", "text": "text_feature_file"}
_GRAPH_FILES = {"user_graph_dict_file": False, "item_graph_dict_file": True}  # key -> of items


class BridgedModel(Recommender):
    """One model file's class, as the host trains it; made for each file by `model_file.load`.

    The state that is saved has the parameters and buffers, and what the file's code keeps in plain attributes and
    changed since construction: scores may depend on that.
    """

    file: ClassVar[ModelFile]
    model: Any
    unnamed: ClassVar[Mapping[str, Any]] = {}  # values of the YAML beside the file whose keys no schema can have

    def __init__(
        self,
        data: TrainingData,
        features: ItemFeatures,
        config: Any,
        *,
        run: RunSpec | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(data, features, config)
        settings = run.settings if run is not None else Settings()
        tables = features()
        self._device = device or next((table.device for table in tables.values()), torch.device("cpu"))
        self._settings = settings
        self._streams = Streams(settings.seed)
        self._epoch = 0
        self._checked_loss = self._checked_numbers = False
        own = vars(config)
        if own.get("use_full_sampling"):
            raise NotApplicable(
                f"{self.file.path}: use_full_sampling: expected false, got {own['use_full_sampling']}; its batches are "
                "of users alone, which no model of MMRec's uses; try leaving it out"
            )
        self._pairs_only = not own.get("use_neg_sampling", True)
        given = self._given_features() if own.get("is_multimodal_model", True) and not own.get("end2end") else {}
        dataset = run.dataset if run is not None else "data"
        reads_folder = self.file.mentions("data_path")
        self._folder = DataFolder(data, given, self.file.code, dataset, self._device) if reads_folder else None
        self._values = Config(self._config_values(own, dataset), self._on_read)
        self._missing = [modality for modality in FEATURE_NAMES if modality not in given]
        loader = TrainingLoader(data, self._values, given)
        with self._data_folder(dataset), process_kept(), self._code("__init__"):
            self._make_named_graphs()
            self.model = self.file.cls(self._values, loader).to(self._device)
        for module in self.model.modules():  # a sparse buffer can't be saved as one
            for name, buffer in [*module._buffers.items()]:
                if buffer is not None and buffer.layout != torch.strided:
                    del module._buffers[name]
                    vars(module)[name] = buffer
        if features.joint:
            self._make_live(given)
        self._attributes = Attributes(self.model)
        self._seen = _Seen(data, self._device)
        if not own.get("req_training", True):
            with self._code("pre_epoch_processing"):
                self.model.pre_epoch_processing()
                self.model.post_epoch_processing()
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)
        self._note(given)

    @classmethod
    def for_run(cls, run: RunSpec, data: TrainingData, features: ItemFeatures, device: torch.device) -> "BridgedModel":
        return cls(data, features, run.model_config, run=run, device=device)

    def on_epoch_start(self, epoch: int) -> None:
        self._epoch = epoch
        self._streams.start_epoch(epoch)
        with self._code("pre_epoch_processing"):
            self.model.pre_epoch_processing()

    def on_epoch_end(self, epoch: int) -> None:
        with self._code("post_epoch_processing"):
            text = self.model.post_epoch_processing()
        if text is not None:
            logger.info("%s", text)

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        rows = [batch.users, batch.positives] + ([] if self._pairs_only else [batch.negatives])
        with self._code("calculate_loss"):
            loss = self.model.calculate_loss(torch.stack(rows))  # its own tensor (2 or 3, B), which it may change
            terms = self._terms(loss)
        if not self._checked_loss:
            self._check_loss(terms)
        return terms

    def scorer(self) -> Scorer:
        def score(users: Tensor) -> Tensor:
            with self._code("full_sort_predict", Streams(self._settings.seed)), self._same_draws():
                scores = self.model.full_sort_predict([users.clone(), self._seen.of(users)])
                return self._checked_scores(scores, len(users))

        with torch.no_grad():
            self._attributes.try_large(lambda: score(torch.zeros(1, dtype=torch.long, device=self._device)))
        return score

    def report(self) -> Any:
        """The configuration that the file read: what it is, and which keys had no value."""
        read = {key: self._values.final_config_dict.get(key) for key in self._values.read if key != "device"}
        read.pop("data_path", None)
        return {
            "file": self.file.path.name,
            "keys": {key: value for key, value in sorted(read.items()) if value is not None},
            "keys_without_value": sorted(key for key, value in read.items() if value is None),
        }

    def state_dict(self, *arguments: Any, **named: Any) -> Any:
        found = super().state_dict(*arguments, **named)
        prefix = named.get("prefix", "")
        return type(found)(
            {**found, **{f"{prefix}{name}": value for name, value in self._attributes.changed().items()}}
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        rest = self._attributes.restore(state_dict, self._device)
        self._add_late(rest)
        return super().load_state_dict(rest, strict=strict, assign=assign)

    def _add_late(self, state: Mapping[str, Any]) -> None:
        """Make room for what the file registers later than in its constructor."""
        own = super().state_dict()
        for name in state:
            if name in own or not name.startswith("model."):
                continue
            path, _, last = name.rpartition(".")
            with suppress(AttributeError):  # of a module that isn't there, which load_state_dict says
                module = self.get_submodule(path)
                vars(module).pop(last, None), module._parameters.pop(last, None)  # such as None
                module.register_buffer(last, torch.zeros_like(state[name], device=self._device))

    # Construction

    def _given_features(self) -> dict[str, Tensor]:
        """v_feat and t_feat by modality (I, F): copies, as the file may train on them in place; joint ones share
        memory with the features."""
        tables = self.features()
        if barred := [modality for modality in tables if modality not in FEATURE_NAMES]:
            raise NotApplicable(
                f"{self.file.path}: expected image or text features (v_feat, t_feat), got {', '.join(barred)}; try "
                f"--modalities {','.join(m for m in FEATURE_NAMES if m in tables) or 'image,text'}"
            )
        return {m: table.detach() if self.features.joint else table.clone() for m, table in tables.items()}

    def _data_folder(self, dataset: str) -> AbstractContextManager[None]:
        """The context in which the file's own folder of data is there."""
        if self._folder is None:
            return nullcontext()
        files = {modality: getattr(self._settings, key) for modality, key in _FEATURE_FILES.items()}
        reads = self.file.mentions("|".join([*_FEATURE_FILES.values(), *map(re.escape, files.values())]))
        return self._folder.constructing(Path(self._settings.data_path) / dataset, files, reads_features=reads)

    def _config_values(self, own: Mapping[str, Any], dataset: str) -> dict[str, Any]:
        settings = self._settings
        return {
            **self.unnamed,
            **OVERALL,
            **{key: getattr(settings, key) for key in HOST_KEYS},
            **own,
            "inter_file_name": settings.inter_file_name or f"{dataset}.inter",
            "data_path": f"{self._folder.root if self._folder else settings.data_path}/",  # files add a name
            "dataset": dataset,
            "model": self.file.cls.__name__,
            "device": self._device,
            "use_gpu": self._device.type == "cuda",
            "valid_metric_bigger": True,
        }

    def _make_named_graphs(self) -> None:
        """Make the graph files whose names are in the file's own strings."""
        if self._folder is not None:
            for name in self.file.in_strings(r"\b(?:user|item)_graph_dict\w*\.npy"):
                self._folder.make_graph(name, of_items=name.startswith("item"))

    def _on_read(self, key: str) -> None:
        """Make a graph file when the file asks for its name."""
        name = self._values.final_config_dict.get(key) if key in _GRAPH_FILES else None
        if self._folder is not None and name:
            self._folder.make_graph(str(name), of_items=_GRAPH_FILES[key])

    def _make_live(self, given: Mapping[str, Tensor]) -> None:
        """Put the joint features in the place of what the file got of them. NotApplicable if it copied them into a
        parameter, which then trains in their place."""
        live = self.features()
        for modality, table in given.items():
            for name, parameter in self.model.named_parameters():
                shared = parameter.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()
                if shared or (parameter.shape == table.shape and torch.equal(parameter, table)):
                    raise NotApplicable(
                        f"{self._line_of(name)}: expected features that are read in each step, for a paradigm that "
                        f"trains them, got {name}, a trained copy of the {modality} features that is made once; try "
                        "--paradigm pt or ft, or a model that comes with mmrec-lmm"
                    )
            for module in self.model.modules():
                for name, value in vars(module).items():
                    if isinstance(value, Tensor) and value is table:
                        vars(module)[name] = live[modality]

    def _line_of(self, parameter: str) -> str:
        """The file and line where a parameter is set, or the first one that copies a tensor into a parameter."""
        names = "|".join(re.escape(part) for part in parameter.split(".") if not part.isdigit())
        lines = self.file.path.read_text(encoding="utf-8", errors="replace").splitlines()
        for pattern in (rf"\.({names}) *=", r"from_pretrained\(|Parameter\(", "class "):
            for number, line in enumerate(lines, start=1):
                if re.search(pattern, line):
                    return f"{self.file.path}:{number}"
        return str(self.file.path)

    def _note(self, given: Mapping[str, Tensor]) -> None:
        """Log what the user may not expect: keys without a value, and items without features."""
        if self._values.without_value:
            keys = ", ".join(f"{key} ({self.file.keys.get(key, '?')})" for key in self._values.without_value)
            logger.info("%s reads keys without a value, which are None to it: %s", self.file.path.name, keys)
        if self._folder is not None and self.file.mentions(r"inter_file_name|\.inter['\"]"):
            _warn_once(
                f"{self.file.path.name} names the file of interactions, which has the rows of validation and test; "
                "if it reads them, its results can't be compared; dataset.inter_matrix() has those of training"
            )
        if (absent := self._absent(given)) and not self.features.joint:  # whose absent rows stay zeros
            _warn_once(
                f"{self.file.path.name}: {absent}; MMRec fills such rows with the mean: --missing=mean, if the file's "
                "arithmetic needs it"
            )

    def _absent(self, given: Mapping[str, Tensor]) -> str:
        """How many items have a row of zeros, in words; empty where none has, or all have."""
        counts = {modality: int((table == 0).all(dim=1).sum()) for modality, table in given.items()}
        return ", ".join(
            f"{n:,} of {self.n_items:,} items lack {m} features and have zeros"
            for m, n in counts.items()
            if 0 < n < self.n_items
        )

    # In training

    @contextmanager
    def _code(self, doing: str, streams: Streams | None = None) -> Iterator[None]:
        """The context in which the file's code runs."""
        with (
            self.file.blaming(doing, config=self._values, missing=self._missing),
            running(self._device, streams or self._streams, self.file.needs),
        ):
            yield

    @contextmanager
    def _same_draws(self) -> Iterator[None]:
        """A context in which torch draws the same numbers each time: a file whose scores are random, as of a
        variational model or by Gumbel noise, has the same ones for all users, and again from saved weights."""
        is_cuda = self._device.type == "cuda"
        with torch.random.fork_rng([self._device] if is_cuda else []):
            torch.default_generator.manual_seed(self._settings.seed)
            if is_cuda:
                torch.cuda.default_generators[self._device.index or 0].manual_seed(self._settings.seed)
            yield

    def _terms(self, loss: Any) -> dict[str, Tensor]:
        """The terms of a loss: "loss", or "loss1", "loss2", ... of a tuple."""
        parts = list(loss) if isinstance(loss, tuple | list) else [loss]
        names = ["loss"] if not isinstance(loss, tuple | list) else [f"loss{n}" for n in range(1, len(parts) + 1)]
        terms: dict[str, Tensor] = {}
        for name, part in zip(names, parts, strict=True):
            if not isinstance(part, Tensor | float | int | np.number):
                raise PluginError(
                    f"{self._place_of_loss}: expected a loss of one number, or a tuple of such, from "
                    f"calculate_loss, got {name} of type {type(part).__name__}; try a sum of tensors"
                )
            term = torch.as_tensor(part, dtype=None if isinstance(part, Tensor) else torch.float32, device=self._device)
            if term.numel() != 1:
                raise PluginError(
                    f"{self._place_of_loss}: expected a loss of one number, or a tuple of such, from "
                    f"calculate_loss, got {name} of shape {tuple(term.shape)}; try its mean"
                )
            terms[name] = term.reshape(())
        return terms

    def _check_loss(self, terms: Mapping[str, Tensor]) -> None:
        """Check the first batch's terms: that they are finite before any step, and reach something that trains."""
        self._checked_loss = True
        where = self._place_of_loss
        total = torch.stack([*terms.values()]).sum()
        if not torch.is_grad_enabled():
            return
        if not total.isfinite():
            if self._epoch == 0:
                wrong = first_few([name for name, term in terms.items() if not term.isfinite()])
                absent = self._absent({m: t for m, t in self.features().items() if m in FEATURE_NAMES})
                cure = ", before any step; try its logarithms, roots and quotients, which may be of 0 or less"
                if absent:
                    cure = f"; {absent}, and a cosine with those is 0 / 0; try --missing=mean, as MMRec does"
                raise RunError(
                    f"{where}: expected a finite loss, got {total.item()} ({wrong}) in the first batch{cure}"
                )
            return
        if not total.requires_grad:
            raise PluginError(
                f"{where}: expected a loss that depends on a parameter, got {total.item()}, which depends on none; try "
                "it without detach() and no_grad(), or, for a model that isn't trained, --req_training=false"
            )
        if self.features.joint:
            leaves = {m: table for m, table in self.features().items() if m in FEATURE_NAMES}
            found = torch.autograd.grad(total, [*leaves.values()], retain_graph=True, allow_unused=True)
            if all(gradient is None for gradient in found):
                raise NotApplicable(
                    f"{where}: expected a loss that depends on the features in each step, for a paradigm that trains "
                    "them, got one that uses only what was made of them at construction; try --paradigm pt or ft"
                )

    def _checked_scores(self, scores: Any, n_users: int) -> Tensor:
        """Scores (B, I) on the run's device; PluginError with the line of full_sort_predict for others."""
        is_array = isinstance(scores, Tensor | np.ndarray)
        if is_array and n_users == 1 and tuple(scores.shape) == (self.n_items,):  # squeezed
            scores = scores[None]
        if not is_array or tuple(scores.shape) != (n_users, self.n_items):
            lacks_columns = is_array and len(scores.shape) == 2 and len(scores) == n_users
            raise PluginError(
                f"{self._place_of('full_sort_predict')}: expected scores ({n_users}, {self.n_items}) of users and all "
                f"items from full_sort_predict, got {tuple(scores.shape) if is_array else type(scores).__name__}; try "
                f"{'a column for each item' if lacks_columns else 'a row for each user'}"
            )
        found = torch.as_tensor(scores, device=self._device)
        if not self._checked_numbers:
            self._checked_numbers = True
            if n_wrong := int(found.isnan().sum()):
                raise RunError(
                    f"{self._place_of('full_sort_predict')}: expected scores that are numbers, got NaN for {n_wrong:,} "
                    f"of {found.numel():,} in the first evaluation; try its logarithms, roots and quotients, or a "
                    "smaller learning_rate if the losses grew"
                )
        return found

    @property
    def _place_of_loss(self) -> str:
        return self._place_of("calculate_loss")

    def _place_of(self, method: str) -> str:
        """The file and line of a method."""
        code = getattr(getattr(self.file.cls, method, None), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else str(self.file.path)


@functools.cache
def _warn_once(text: str) -> None:
    """Warn, but not again for each point of a grid."""
    logger.warning("%s", text)


class _Seen:
    """The training items of users, as MMRec's evaluation batches have them."""

    def __init__(self, data: TrainingData, device: torch.device) -> None:
        order = np.argsort(data.train.users, kind="stable")
        counts = np.bincount(data.train.users, minlength=data.n_users)
        self._items = torch.from_numpy(data.train.items[order]).to(device)
        self._counts = torch.from_numpy(counts).to(device)
        self._starts = torch.from_numpy(np.cumsum(counts) - counts).to(device)

    def of(self, users: Tensor) -> Tensor:
        """(2, m): the row in `users`, and the item."""
        counts = self._counts[users]
        rows = torch.arange(len(users), device=users.device).repeat_interleave(counts)
        before = counts.cumsum(0) - counts
        places = torch.arange(len(rows), device=users.device) + (self._starts[users] - before)[rows]
        return torch.stack([rows, self._items[places]])
