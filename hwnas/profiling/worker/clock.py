"""One sample: wall and CPU time of some back-to-back work, and what the scheduler did meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from hwnas.profiling.backend import Sample

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)  # Linux only
_SCHEDSTAT = "/proc/thread-self/schedstat"


def sample(
    run: Callable[[int], None], loops: int, *, thread_time: bool = True, device_ns: Callable[[], float] | None = None
) -> Sample:
    """Time `run(loops)`, which returns when its work is done.

    Args:
        run: Does so many inferences.
        loops: How many.
        thread_time: Whether the calling thread does the work; else its CPU time says nothing and the process's stands
            in its place.
        device_ns: Time that the device took for all of it, asked for afterwards.
    """
    switches, delay = _switches(), _run_delay()
    cpu, process, wall = time.thread_time_ns(), time.process_time_ns(), time.perf_counter_ns()
    run(loops)
    wall, process, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - process, time.thread_time_ns() - cpu
    return Sample(
        wall / loops,
        (cpu if thread_time else process) / loops,
        process / loops,
        None if device_ns is None else device_ns() / loops,
        _switches() - switches,
        _run_delay() - delay,
    )


def _switches() -> int:
    return 0 if _THREAD is None else int(resource.getrusage(_THREAD).ru_nivcsw)


def _run_delay() -> int:
    try:
        descriptor = os.open(_SCHEDSTAT, os.O_RDONLY)
    except OSError:
        return 0
    try:
        return int(os.read(descriptor, 100).split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    finally:
        os.close(descriptor)
