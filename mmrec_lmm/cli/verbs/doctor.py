"""`doctor`: checks if this machine is ready."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...errors import DataError
from ..parser import add_verb, data_folder
from ..shared import registry_of

if TYPE_CHECKING:
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    doctor = add_verb(verbs, "doctor", _doctor, "Check libraries, devices, plugins, weights and data.")
    data_folder(doctor)


def _doctor(options: argparse.Namespace) -> int:
    from ..doctor import doctor

    text, healthy = doctor(registry_of(options), options.data_path)
    print(text)
    return 0 if healthy else DataError.exit_code
