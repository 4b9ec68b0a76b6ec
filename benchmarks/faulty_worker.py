"""The worker that times networks, with faults: `python benchmarks/faulty_worker.py FAULTS`.

FAULTS is a JSON object, name of a model's file without suffix to what goes wrong with it in an otherwise real runtime:

    crash      the process ends when the model is loaded; with "@30" when it is timed for the 30th time (warm-up too)
    killed     likewise, by SIGKILL
    hang       it never answers
    garbage    it writes to standard output what is no message
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hwnas.profiling.worker import __main__ as worker
from hwnas.profiling.worker.runtimes.registry import backend


class Faulty:
    """A runtime some of whose models go wrong; everything else is the runtime's own."""

    def __init__(self, real: Any, faults: dict[str, str]) -> None:
        self._real, self._faults = real, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def load(self, model: str, config: Any) -> Any:
        word, _, at = self._faults.get(Path(model).stem, "").partition("@")
        if not at:
            go_wrong(word)
        loaded = self._real.load(model, config)
        return FaultyModel(loaded, word, int(at)) if at else loaded


class FaultyModel:
    """A model that goes wrong at one of its visits."""

    def __init__(self, real: Any, fault: str, at: int) -> None:
        self._real, self._fault, self._left = real, fault, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def timed(self, k: int, loops: int = 1) -> Any:
        self._left -= 1
        if self._left == 0:
            go_wrong(self._fault)
        return self._real.timed(k, loops)


def go_wrong(fault: str) -> None:
    if fault == "crash":
        os._exit(3)
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "garbage":
        os.write(1, b'\x1e{not json\n\xff\xfe[W:garbage] {"ok": true}\n')
    while fault == "hang":
        time.sleep(60.0)


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    worker.backend = lambda name: Faulty(backend(name), told)
    worker.main()
