"""The errors, one class per kind, each with the exit code that the command line returns for it.

A message names the file, key, flag or plugin, what was expected, what was found, and the likely correction.
"""

import difflib
import errno
from collections.abc import Iterable


class MMRecError(Exception):
    """Base of every error that a user can cause or fix; the command line prints it without a traceback."""

    exit_code = 1


class RunError(MMRecError):
    """A run failed: it diverged, or the disk is full."""


class TrainingDiverged(RunError):
    """The loss, a gradient or the scores became NaN or infinite before any state worth keeping existed."""


class RunBusy(RunError):
    """Another process is working on the same run."""


class OutOfStep(MMRecError):
    """The first of torchrun's processes failed in a call that others have begun too, so they can't continue."""


class ConfigError(MMRecError):
    """A name, key, value or combination that configuration doesn't allow."""

    exit_code = 2


class ConfigValueError(ValueError):
    """A value that the `__post_init__` of a configuration's dataclass refuses: its field, and what is wrong with it.

    `others` are the fields that it was compared with: the message names the place that set one of them last. Raised
    as `ConfigValueError("width", "must be at least 1, got 0")`; the host turns it into a ConfigError.
    """

    def __init__(self, key: str, text: str, *others: str) -> None:
        super().__init__(key, text, *others)
        self.key, self.text, self.others = key, text, others

    def __str__(self) -> str:
        return f"{self.key} {self.text}"


class NotApplicable(ConfigError):
    """A combination that this encoder, model or data set doesn't support; a study records that, and continues."""


class PluginError(ConfigError):
    """A plugin that was asked for can't be used: it failed to import, or two plugins claim one name."""


class DataError(MMRecError):
    """A data file is missing, damaged, or disagrees with another."""

    exit_code = 4


class NoAccess(DataError):
    """The system refuses this user a file or folder that exists, or a place for a new one: permissions, or a read-only
    file system."""


class WeightsMissing(DataError):
    """Pretrained weights aren't on this machine and can't be downloaded; the message names URL, file and folder."""


def is_denied(error: BaseException) -> bool:
    """True if an error means that the system refuses this user a file: permissions, or a read-only file system."""
    return isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: ``; did you mean X?`` for the closest known name, else an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""
