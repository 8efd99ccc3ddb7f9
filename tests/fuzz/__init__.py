"""Damages what the command line reads, and judges what it does then: `python -m tests.fuzz` (docs/reliability.md).

`workspace.py` makes data sets, runs, a study and all other files once, and restores them after each input. `kinds.py`
lists the kinds of files with the commands that read each, `damage.py` how a file is damaged, `typed.py` what is typed
after keys and flags. `judge.py` runs a command in a process forked from one that has imported everything, and says
what it did wrong.
"""

import os
import sys
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MMREC_LMM_OFFLINE": "1"}  # before torch, as in conftest.py
sys.path.append(str(Path(__file__).parents[1]))  # for the makers of data sets in other tests, which pytest finds so
