"""Memory and time of encoding a large catalog: `python -m benchmarks.encoding [--items 1000000]`.

A data set of short texts is made in a temporary folder and encoded by `encode --encoder basic`, in a process of its
own. What that process needs for 1,000 items is torch's own; the rest is compared with the table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH = 1024  # of basic's texts
CHILD = """
import sys
from mmrec_lmm.cli import main
from benchmarks.memory import peak_bytes
code = main(sys.argv[1:])
print(peak_bytes(), file=sys.stderr)
sys.exit(code)
"""


def measure(n_items: int, place: Path) -> tuple[int, float]:
    """The peak of memory in bytes, and the seconds, of encoding so many texts."""
    folder = place / "data" / "texts"
    folder.mkdir(parents=True)
    with (folder / "items.tsv").open("w") as file:
        file.write("itemID\ttitle\n")
        file.writelines(f"{item}\tthing {item:x}\n" for item in range(n_items))
    rows = "".join(f"{row // 3}\t{row}\t{row % 3}\n" for row in range(9))
    (folder / "texts.inter").write_text("userID\titemID\tx_label\n" + rows)
    command = [
        sys.executable, "-c", CHILD, "encode", "-d", "texts", f"--data_path={place / 'data'}", "--encoder", "basic",
        "--modalities", "text",
    ]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "MMREC_LMM_HOME": str(place / "home")}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stderr.splitlines()[-1]), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as few, tempfile.TemporaryDirectory() as many:
        own, _ = measure(1000, Path(few))
        peak, seconds = measure(options.items, Path(many))
    table = options.items * WIDTH * 4
    print(
        json.dumps(
            {
                "items": options.items,
                "table_gb": round(table / 1e9, 2),
                "peak_gb": round(peak / 1e9, 2),
                "torchs_own_gb": round(own / 1e9, 2),
                "tables": round((peak - own) / table, 3),
                "seconds": round(seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
