"""What it takes to make a data set of a raw dump: `python -m benchmarks.data [--reviews 20000000] [--plain]`.

Writes synthetic reviews in the format of Amazon 2014 to a temporary folder (gzip, or plain text), builds a 5-core data
set of them, and prints the seconds and the peak memory of the whole family of processes. Aim: 20 million reviews in ten
minutes and 8 GB on two cores. docs/performance.md has the results.

Degrees follow a power law: 4 % of the users have five reviews or more, as in Amazon's electronics. Texts come from a
pool; a line has some 900 bytes, as there.
"""

import argparse
import contextlib
import functools
import json
import tempfile
import threading
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from mmrec_lmm_data_tools.building import build_folder

SEED, TEXTS, LENGTH = 7, 4096, 800  # texts in the pool, and their mean number of characters
BLOCK = 50_000  # reviews written at once
USERS_PER_REVIEW, ITEMS_PER_REVIEW = 0.5, 0.06  # Amazon's electronics: 4.2 million and 0.5 million of 7.8 million
WORDS = ["the", "it", "this", "I", "is", "my", "for", "works", "great", "cable", "phone", "sound", "battery", "good"]


def block(job: tuple[int, int, int]) -> bytes:
    """The lines of one block: its number, the reviews in it, and the reviews of the whole file."""
    number, size, total = job
    rng = np.random.default_rng([SEED, number])
    texts = _texts()
    users = _ids(rng, size, int(total * USERS_PER_REVIEW), steepness=3)
    items = _ids(rng, size, int(total * ITEMS_PER_REVIEW), steepness=2)
    stars, days = rng.integers(1, 6, size), rng.integers(11_000, 16_200, size)
    chosen = rng.integers(TEXTS, size=size)
    columns = (column.tolist() for column in (users, items, stars, days, chosen))
    return b"".join(
        b'{"reviewerID": "A%012X", "asin": "B%09X", "reviewerName": "Jo \\"J\\" Doe", "helpful": [0, 1], "reviewText": '
        b'%s, "overall": %d.0, "summary": "Five Stars", "unixReviewTime": %d, "reviewTime": "07 12, 2013"}\n'
        % (user, item, texts[text], star, day * 86_400)
        for user, item, star, day, text in zip(*columns, strict=True)
    )


def _ids(rng: np.random.Generator, size: int, count: int, *, steepness: int) -> np.ndarray:
    """Random ids of `count` owners. The share of the k-th is proportional to k ** (1 / steepness - 1), but the first
    few are alike. Scattered, so that the order of ids says nothing."""
    ranks = (count * rng.uniform(0.01, 1, size) ** steepness).astype(np.int64)
    return ranks * 2_654_435_761 % 2**36


@functools.cache
def _texts() -> list[bytes]:
    rng = np.random.default_rng(SEED)
    lengths = np.clip(rng.lognormal(np.log(LENGTH / 5) - 0.5, 1.0, TEXTS), 5, 2_000).astype(int)  # in words
    return [json.dumps(" ".join(rng.choice(WORDS, length)) + ' "ok" &#34;').encode() for length in lengths]


def packed(job: tuple[int, int, int]) -> bytes:
    """A block as a member of a gzip file, packed quickly."""
    member = zlib.compressobj(level=1, wbits=31)
    return member.compress(block(job)) + member.flush()


def write(path: Path, reviews: int, *, plain: bool) -> None:
    """Write that many reviews."""
    jobs = [(number, min(BLOCK, reviews - begin), reviews) for number, begin in enumerate(range(0, reviews, BLOCK))]
    with ProcessPoolExecutor() as pool, path.open("wb") as file:
        for begin in range(0, len(jobs), 16):  # a few blocks ahead of the disk, not all
            file.writelines(pool.map(block if plain else packed, jobs[begin : begin + 16]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=20_000_000, metavar="N")
    parser.add_argument("--plain", action="store_true", help="plain text instead of gzip")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for temporary files, some 6 GB (plain: 20 GB)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        raw = Path(folder, "raw")
        raw.mkdir()
        path = raw / ("reviews_Synthetic.json" + ("" if options.plain else ".gz"))
        begin = time.perf_counter()
        write(path, options.reviews, plain=options.plain)
        print(
            f"{path.name}: {path.stat().st_size / 1e9:.2f} GB, written in {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
        begin = time.perf_counter()
        with Watch() as watch:
            report = build_folder(raw, Path(folder, "synthetic"), core=5)
        seconds = time.perf_counter() - begin
        print(report)
        print(
            f"{options.reviews:,} reviews: {seconds:.0f} s ({options.reviews / seconds:,.0f} a second), "
            f"{watch.peak / 1e9:.2f} GB at most, all processes together"
        )


class Watch:
    """Samples the memory of this process and its children; `peak` is the largest sum, in bytes."""

    def __enter__(self) -> "Watch":
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.2):
            self.peak = max(self.peak, sum(map(_own_memory, _family())))


def _family() -> list[str]:
    """This process and its children, by id."""
    found = ["self"]
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            found += path.read_text().split()
    return found


def _own_memory(process: str) -> int:
    """The bytes of a process, its share of what it shares with others; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", process, "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


if __name__ == "__main__":
    main()
