"""Recommendations and embeddings as files that other programs read, by the shop's own ids.

    recommendations   .parquet .jsonl .csv .tsv: columns user, rank, item, title; written frame by frame
    embeddings        .parquet .jsonl: a row for each user and item, with columns kind, id, embedding
                      .safetensors: tensors users (U, D) and items (I, D); their ids are JSON in the metadata
                      .npy: (U + I, D), users first; NAME.ids.json beside it has the ids in the order of rows

A file appears whole or not at all. pyarrow writes Parquet, and is imported only for that.

Shapes: U users, I items, D embedding.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from ..disk.sealed import save_file
from ..disk.writing import write_bytes, write_output_by
from ..errors import ConfigError, did_you_mean
from ..formatting import csv_text
from .recommend import KINDS

EMBEDDINGS = ("npy", "safetensors", "parquet", "jsonl")
RECOMMENDATIONS = ("parquet", "jsonl", "csv", "tsv")
IN_PIECES = ("jsonl", "csv", "tsv")  # text, which a stream can take

ROWS = 1 << 16  # of embeddings that are converted at once
LARGEST_IDS = 90_000_000  # bytes in the metadata of safetensors, whose header has 100 MB


def format_of(path: Path, formats: Sequence[str], format: str | None = None) -> str:
    """The format that is named, or that the path's suffix names. ConfigError for another; checks for pyarrow."""
    what, name = ("--format", format) if format else (f"{path}", path.suffix.removeprefix(".").lower())
    if name not in formats:
        expected = ", ".join(formats if format else (f".{one}" for one in formats))
        hint = did_you_mean(name, formats) if format else "; try another name, or --format"
        raise ConfigError(f"{what}: expected {expected}, got {name or 'no suffix'}{hint}")
    if name == "parquet":
        _need_pyarrow()
    return name


def _need_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"--format parquet: expected pyarrow to be installed, got {error}; try pip install 'mmrec-lmm[parquet]', "
            "or --format jsonl"
        ) from None
    return pyarrow


def write_recommendations(path: Path, frames: Iterable[pd.DataFrame], format: str) -> Path:
    """Write the frames of `recommendations` as one file."""
    if format != "parquet":
        return write_output_by(path, lambda place: _write_all(place, pieces(frames, format)))
    arrow = _need_pyarrow()

    def write(place: Path) -> None:
        writer = None
        for frame in frames:
            if writer is None:
                of_ids = arrow.int64() if pd.api.types.is_integer_dtype(frame["user"]) else arrow.string()
                kinds = {"user": of_ids, "rank": arrow.int32(), "item": of_ids, "title": arrow.string()}
                writer = arrow.parquet.ParquetWriter(place, arrow.schema(kinds))
            writer.write_table(arrow.Table.from_pandas(frame, writer.schema, preserve_index=False))
        assert writer is not None
        writer.close()

    return write_output_by(path, write)


def pieces(frames: Iterable[pd.DataFrame], format: str) -> Iterator[str]:
    """The text of frames in one of IN_PIECES, a piece for each frame."""
    for number, frame in enumerate(frames):
        records = ({str(name): cell for name, cell in row.items()} for row in frame.to_dict("records"))
        if format == "jsonl":
            yield "".join(f"{json.dumps(record)}\n" for record in records)
        else:
            separator = "," if format == "csv" else "\t"
            yield csv_text(records, separator=separator, columns=frame.columns, header=number == 0)


def _write_all(place: Path, texts: Iterable[str]) -> None:
    with place.open("wb") as file:
        for text in texts:
            file.write(text.encode(errors="backslashreplace"))  # names of files may be no text


def write_embeddings(
    path: Path, vectors: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray], format: str, *, run: str
) -> list[Path]:
    """Write `vectors` (N, D) float32 of "users", "items" or both, whose `ids` (N,) are text. Returns the files written,
    `path` first."""
    listed = json.dumps({name: ids[name].tolist() for name in vectors})
    write = {"npy": _npy, "parquet": _parquet, "jsonl": _jsonl}.get(format)
    if write is not None:
        beside = [path.with_suffix(".ids.json")] if format == "npy" else []
        for place in beside:  # first: where the array is, its ids are
            write_bytes(place, listed.encode())
        return [write_output_by(path, lambda place: write(place, vectors, ids)), *beside]
    if len(listed) > LARGEST_IDS:
        raise ConfigError(
            f"{path}: expected at most {LARGEST_IDS:,} bytes of ids, as safetensors holds no more, got "
            f"{len(listed):,}; try --format parquet"
        )
    about = {"run": json.dumps(run), "ids": listed}
    return [write_output_by(path, lambda place: save_file(vectors, place, about))]


_Write = Callable[[Path, Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None]


def _npy(place: Path, vectors: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]) -> None:
    rows, width = sum(map(len, vectors.values())), next(iter(vectors.values())).shape[1]
    with place.open("wb") as file:
        about = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(file, about)
        for values in vectors.values():
            file.write(np.ascontiguousarray(values, "<f4").data)


def _jsonl(place: Path, vectors: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]) -> None:
    with place.open("wb") as file:
        for kind, own, block in _blocks(vectors, ids):
            _write_lines(file, kind, own, block)


def _write_lines(file: IO[bytes], kind: str, own: np.ndarray, block: np.ndarray) -> None:
    numbers = block.astype("U")  # (N, D): the shortest text of each float32
    rows = zip(own.tolist(), numbers.tolist(), strict=True)
    lines = (f'{{"kind": "{kind}", "id": {json.dumps(name)}, "embedding": [{", ".join(row)}]}}\n' for name, row in rows)
    file.write("".join(lines).encode())


def _parquet(place: Path, vectors: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]) -> None:
    arrow = _need_pyarrow()
    width = next(iter(vectors.values())).shape[1]
    kinds = {"kind": arrow.string(), "id": arrow.string(), "embedding": arrow.list_(arrow.float32(), width)}
    with arrow.parquet.ParquetWriter(place, arrow.schema(kinds)) as writer:
        for kind, own, block in _blocks(vectors, ids):
            rows = arrow.FixedSizeListArray.from_arrays(arrow.array(block.reshape(-1)), width)
            columns = [arrow.array([kind] * len(own)), arrow.array(own.tolist(), arrow.string()), rows]
            writer.write_table(arrow.table(columns, writer.schema))


def _blocks(
    vectors: Mapping[str, np.ndarray], ids: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The kind, the ids and the vectors of some ROWS rows each."""
    for name, values in vectors.items():
        for start in range(0, len(values), ROWS):
            yield KINDS[name], ids[name][start : start + ROWS], values[start : start + ROWS]
