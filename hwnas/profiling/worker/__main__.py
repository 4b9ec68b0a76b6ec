"""`python -m hwnas.profiling.worker`: requests on standard input, replies on what was standard output.

A worker ends with whoever asks it, however that ends: nobody else would stop it, and it would go on disturbing what is
measured next. The end of standard input ends it at once, also in the middle of an inference (and over ssh, when the
connection breaks); on Linux the system does, too, where not even Python's threads run any more.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from hwnas.profiling.backend import SessionConfig
from hwnas.profiling.wire import PARENT, Message, frame
from hwnas.profiling.worker.dispatch import Dispatcher
from hwnas.profiling.worker.runtimes.registry import backend

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Answer until a request says quit; standard input that ends before ends the process."""
    end_with(os.environ.pop(PARENT, ""))
    # runtimes print to standard output as they like; replies go through a descriptor that they do not know
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Ctrl-C in the terminal reaches the whole foreground group; whether to stop is the host's decision
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(message: Message) -> None:
        channel.write(frame(message))
        channel.flush()

    dispatcher = Dispatcher(backend, emit=send)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    # blocked in a system call while networks are timed, so it costs them nothing
    threading.Thread(target=_listen, args=(0, requests), daemon=True).start()
    while True:
        request = requests.get()
        if request.get("op") == "load":
            restrict(SessionConfig.from_json(request["config"]))
        send({**dispatcher.handle(request), "n": request.get("n")})
        if request.get("op") == "quit":
            return


def end_with(parent: str) -> None:
    """Let the system end this process when another one ends; does nothing where there is no such call.

    Args:
        parent: The number of the process that starts this one; "" if it shall not be watched.
    """
    if sys.platform != "linux" or not parent:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    try:
        os.kill(int(parent), 0)
    except ProcessLookupError:  # it ended before it was watched
        os._exit(1)
    except PermissionError:
        pass  # there, and somebody else's


def _listen(descriptor: int, requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Hand on requests up to the one that says quit. If the input ends before, whatever is going on is ended."""
    try:
        for line in _lines(descriptor):
            with suppress(ValueError):
                request = json.loads(line.lstrip(b"\x1e"))
                if isinstance(request, dict):
                    requests.put(request)
                    if request.get("op") == "quit":
                        return
    except BaseException:  # a lack of memory, say: without this thread nobody would answer any more
        traceback.print_exc()
    os._exit(1)


def _lines(descriptor: int) -> Iterator[bytes]:
    # not sys.stdin: a thread that waits in it would keep its lock, and the interpreter could not end
    rest = b""
    while chunk := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def restrict(config: SessionConfig) -> None:
    """Hold the whole process to a configuration's CPUs and memory; before a runtime makes its threads."""
    if config.cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, config.cpus)
    if config.memory_limit_mib is not None:
        import resource

        limit = int(config.memory_limit_mib * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main()
