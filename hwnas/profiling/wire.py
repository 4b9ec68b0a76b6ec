"""What host and worker say to each other: JSON objects, each in a frame of its own line.

A frame is RS (0x1E), one JSON object, newline (RFC 7464). Runtimes print to standard output as they like: a line
without RS at its start is noise, counted but never read. Requests are answered in order, one reply each; while it
works the worker may send `{"event": "at", "id": ...}` before it touches a model, so that a crash has a name.

Requests (`op` and its fields) and the fields of a good reply:

    probe   runtime                                      -> info (DeviceInfo)
    load    id, path, config                             -> providers, build_s, load_s, first_run_ms
    warm    id, min_runs, min_ms, max_runs, max_ms, tol  -> runs, steady, run_ms (median of the last block)
    round   visits [[id, untimed, k, loops], ...]        -> samples {id: [[fields of Sample], ...]}, a network's in the
                                                            order of its visits
    outputs id, path (where to write an .npz)            -> names [...]
    memory  id                                           -> memory (MemoryInfo)
    energy  id, window_s, windows                        -> energy {energy_mj, power_w, idle_w, ci, source, reason}
    unload  id                                           -> (nothing)
    room    config                                       -> free_bytes, total_bytes (null where nobody tells)
    state                                                -> conditions (load, pressure, clocks, temperatures, ...)
    quit                                                 -> (nothing), then the worker ends

A reply is `{"ok": true, ...}` or `{"ok": false, "status": ..., "error_type": ..., "message": ...}`, where status is one
of `hwnas.core.measurement.Status`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

RS = "\x1e"
PARENT = "HWNAS_PARENT"  # variable that tells a worker here the number of the process that it shall end with
Message = Mapping[str, Any]


def frame(message: Message) -> str:
    """A message as one line."""
    return f"{RS}{json.dumps(message, separators=(',', ':'), allow_nan=False)}\n"


def unframe(line: str) -> dict[str, Any] | None:
    """The message of a line; None where the line is noise."""
    if not line.startswith(RS):
        return None
    try:
        message = json.loads(line[1:])
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


class WorkerDied(Exception):
    """The worker ended before it answered.

    Args:
        message: How, in words: exit status or signal, and the last lines of its standard error.
        at: Model that it was working on, as far as is known.
        out_of_memory: Whether the way it ended speaks for a lack of memory.
    """

    def __init__(self, message: str, *, at: str | None = None, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.at = at
        self.out_of_memory = out_of_memory


class WorkerTimeout(Exception):
    """No answer before the deadline; the worker has been killed.

    Args:
        message: What was asked, and how long was waited.
        at: Model that it was working on, as far as is known.
    """

    def __init__(self, message: str, *, at: str | None = None) -> None:
        super().__init__(message)
        self.at = at


class Transport(Protocol):
    """How the host reaches a worker: a subprocess here, over ssh, or in this process for tests of the host's logic."""

    noise: int  # lines of the worker that were no message

    def start(self) -> None:
        """Begin a fresh worker; one that runs is ended first."""

    def call(self, request: Message, *, timeout: float) -> dict[str, Any]:
        """The reply to a request.

        Args:
            request: `op` and its fields.
            timeout: Seconds until the worker is killed.

        Raises:
            Failure: The worker answered that it cannot.
            WorkerDied: It ended.
            WorkerTimeout: It did not answer in time.
        """

    def put(self, path: str) -> str:
        """Make a file of the host readable for the worker; returns the path as the worker knows it."""

    def close(self) -> None:
        """End the worker; closing twice does nothing."""
