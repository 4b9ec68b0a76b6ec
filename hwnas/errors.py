"""The error tree of hwnas. Every message says what was wanted, what came, which thing, and what to do.

HwnasError
├── UsageError (ValueError)        the request itself is wrong: exit code 2
│   ├── UnknownName                a device, space, data set, objective, generator, ... that does not exist
│   ├── InvalidBudget              a budget with a wrong or missing unit, or a value that cannot be met
│   ├── InvalidArchitecture        a code or string that its search space does not admit
│   ├── InvalidSetting             a configuration key or value that is not admitted
│   └── InvalidModel               a file that is no ONNX model, or one that cannot be run as it is
├── MissingExtra (ImportError)     an optional package is not installed: exit code 3
├── DataError                      a table, profile or download that cannot be trusted: exit code 4
│   ├── TablesNotFound             no folder, or no file in it, that holds what was asked for
│   ├── TooFewMeasurements         a saved profile of too few networks to predict others
│   ├── InvalidTable               truncated, wrong columns, wrong row count, unsafe content
│   └── FetchFailed                offline, or the hash of the download is not the expected one
├── RunError                       a run directory that cannot be used: exit code 5
│   ├── RunExists                  never overwritten
│   ├── RunIncompatible            made by another version or with another configuration
│   ├── RunLocked                  another process is writing to it
│   └── RunCorrupt                 its database or files are damaged
├── ExportFailed                   an architecture could not be written as a checked model: exit code 6
└── DeviceError                    a device that cannot be measured on: exit code 7
    ├── DeviceUnavailable          its runtime, driver or hardware is not here
    └── DeviceBusy                 another process is measuring on it
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HwnasError(Exception):
    """Base of all errors that hwnas raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(HwnasError, ValueError):
    exit_code = 2


class UnknownName(UsageError):
    """A name that is not in a closed list; suggests the nearest ones.

    Args:
        what: The kind of thing, in the singular: "device", "generator".
        name: What was asked for.
        known: All admitted names.
    """

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        folded = {candidate.casefold(): candidate for candidate in names}
        near = difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(folded[match]) for match in near)}?" if near else ""
        super().__init__(f"no {what} {name!r}. Known: {', '.join(names) or 'none'}.{hint}")
        self.what, self.name, self.known = what, name, names

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.what, self.name, self.known)


class InvalidBudget(UsageError):
    pass


class InvalidArchitecture(UsageError):
    pass


class InvalidSetting(UsageError):
    pass


class InvalidModel(UsageError):
    pass


class MissingExtra(HwnasError, ImportError):
    exit_code = 3


class DataError(HwnasError):
    exit_code = 4


class TablesNotFound(DataError):
    pass


class TooFewMeasurements(DataError):
    pass


class InvalidTable(DataError):
    pass


class FetchFailed(DataError):
    pass


class RunError(HwnasError):
    exit_code = 5


class RunExists(RunError):
    pass


class RunIncompatible(RunError):
    pass


class RunLocked(RunError):
    pass


class RunCorrupt(RunError):
    pass


class ExportFailed(HwnasError):
    exit_code = 6


class DeviceError(HwnasError):
    exit_code = 7


class DeviceUnavailable(DeviceError):
    pass


class DeviceBusy(DeviceError):
    pass
