"""`python -m hwnas.profiling.worker`: requests on standard input, replies on what was standard output."""

from __future__ import annotations

import json
import os
import signal
import sys

from hwnas.profiling.backend import SessionConfig
from hwnas.profiling.wire import Message, frame
from hwnas.profiling.worker.dispatch import Dispatcher
from hwnas.profiling.worker.runtimes.registry import backend


def main() -> None:
    """Answer until standard input ends or a request says quit."""
    # runtimes print to standard output as they like; replies go through a descriptor that they do not know
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Ctrl-C in the terminal reaches the whole foreground group; whether to stop is the host's decision
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(message: Message) -> None:
        channel.write(frame(message))
        channel.flush()

    dispatcher = Dispatcher(backend, emit=send)
    for line in sys.stdin:
        try:
            request = json.loads(line.lstrip("\x1e"))
        except ValueError:
            continue
        if request.get("op") == "load":
            restrict(SessionConfig.from_json(request["config"]))
        send({**dispatcher.handle(request), "n": request.get("n")})
        if request.get("op") == "quit":
            break


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
