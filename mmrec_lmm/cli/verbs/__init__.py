"""The verbs, one file per group. A handler follows its flags, returns an exit code, and imports what it needs.

To add a verb, call `add_verb` in a group's `add` and write its handler in that file.
"""

from . import board, clean, data, doctor, encode, look, mmrec, plugins, run, runs, study, tables, weights

#: The functions that add each group's verbs to the command, in the order of `--help`.
GROUPS = (
    run.add, look.add, encode.add, weights.add, tables.add, doctor.add, data.add, study.add, runs.add, board.add,
    plugins.add, mmrec.add, clean.add,
)  # fmt: skip
