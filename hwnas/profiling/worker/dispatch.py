"""Requests to replies: finds the runtime, keeps the loaded models, and turns every error into a status."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.core.measurement import Status
from hwnas.profiling import host
from hwnas.profiling.backend import Backend, Failure, LoadedModel, Sample, SessionConfig
from hwnas.profiling.energy import find_meter, measure_energy
from hwnas.profiling.wire import Message
from hwnas.profiling.worker import engines

_BLOCK = 5  # runs whose median is compared with that of the next block while warming up

# What runtimes say, in their own words, and what it means. Their exceptions share no base class, and one class is used
# for many things, so the text decides.
_SIGNS: tuple[tuple[str, Status], ...] = (
    ("failed to allocate", Status.OUT_OF_MEMORY),
    ("out of memory", Status.OUT_OF_MEMORY),
    ("bad_alloc", Status.OUT_OF_MEMORY),
    ("cannot allocate memory", Status.OUT_OF_MEMORY),
    ("no op registered", Status.UNSUPPORTED_OP),
    ("is not a registered function/op", Status.UNSUPPORTED_OP),
    ("could not find an implementation", Status.UNSUPPORTED_OP),
    ("not_implemented", Status.UNSUPPORTED_OP),
    ("unsupported operator", Status.UNSUPPORTED_OP),
    ("conversion rule", Status.UNSUPPORTED_OP),
    ("no importer registered", Status.UNSUPPORTED_OP),
    ("is under development and support", Status.UNSUPPORTED_OP),  # an opset that the runtime does not know yet
    ("unsupported model ir version", Status.INVALID_MODEL),
    ("invalid_protobuf", Status.INVALID_MODEL),
    ("invalidprotobuf", Status.INVALID_MODEL),
    ("invalid_graph", Status.INVALID_MODEL),
    ("invalid_argument", Status.INVALID_MODEL),
    ("protobuf parsing failed", Status.INVALID_MODEL),
    ("unable to read the model", Status.INVALID_MODEL),
    ("model can't be parsed", Status.INVALID_MODEL),  # OpenVINO, half a file
    ("no such file", Status.INVALID_MODEL),
    ("could not open the file", Status.INVALID_MODEL),
)
_INVALID_CLASSES = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "NoModel")


class Dispatcher:
    """Answers the requests of `hwnas.profiling.wire`, one at a time.

    Args:
        backend: A runtime by its name; raises Failure where there is none.
        emit: Sends a message that is no reply.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        backend: Callable[[str], Backend],
        *,
        emit: Callable[[Message], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._backend = backend
        self._emit = emit
        self._clock = clock
        self._models: dict[str, LoadedModel] = {}
        self._runtimes: dict[str, str] = {}

    def handle(self, request: Message) -> dict[str, Any]:
        """The reply to a request; never raises for what a candidate or runtime does."""
        try:
            answer = getattr(self, f"_{request.get('op')}", None)
            if answer is None:
                raise Failure(Status.CRASHED, f"the worker knows no request {request.get('op')!r}")
            found: Mapping[str, Any] | None = answer(request)
            return {"ok": True, **(found or {})}
        except Exception as error:  # whatever a runtime raises costs this request only
            status, message = explain(error)
            return {"ok": False, "status": str(status), "error_type": type(error).__name__, "message": message}

    def close(self) -> None:
        """Unload everything."""
        while self._models:
            self._models.popitem()[1].close()

    def _probe(self, request: Message) -> Mapping[str, Any]:
        return {"info": self._backend(request["runtime"]).probe().to_json()}

    def _load(self, request: Message) -> Mapping[str, Any]:
        name, config = request["id"], SessionConfig.from_json(request["config"])
        self._at(name)
        self._unload(request)
        start = self._clock()
        model = self._backend(config.runtime).load(request["path"], config)
        loaded = self._clock()
        try:
            model.run(1)
        except BaseException:
            model.close()
            raise
        self._models[name], self._runtimes[name] = model, config.runtime
        if config.cache is not None:
            engines.bound(Path(config.cache), config.cache_mib)
        return {
            "providers": list(model.providers),
            "build_s": model.build_s,
            "load_s": loaded - start - model.build_s,
            "first_run_ms": 1e3 * (self._clock() - loaded),
        }

    def _warm(self, request: Message) -> Mapping[str, Any]:
        """Runs until two blocks agree; the least runs and time first, the most at the latest."""
        model = self._model(request["id"])
        times: list[float] = []  # ms
        steady = False
        # small networks need more runs than `max_runs` to reach the least time
        while (len(times) < request["max_runs"] or sum(times) < request["min_ms"]) and sum(times) < request["max_ms"]:
            times += [sample.wall_ns * 1e-6 for sample in _timed(model, _BLOCK)]
            if len(times) >= max(request["min_runs"], 2 * _BLOCK) and sum(times) >= request["min_ms"]:
                before, last = (statistics.median(block) for block in (times[-2 * _BLOCK : -_BLOCK], times[-_BLOCK:]))
                steady = abs(last - before) < request["tol"] * before
                if steady:
                    break
        return {"runs": len(times), "steady": steady, "run_ms": statistics.median(times[-_BLOCK:])}

    def _round(self, request: Message) -> Mapping[str, Any]:
        samples: dict[str, list[tuple[float | None, ...]]] = {}
        for name, untimed, k, loops in request["visits"]:
            model = self._model(name)
            if untimed:
                model.run(untimed)
            samples.setdefault(name, []).extend(map(tuple, _timed(model, k, loops)))
        return {"samples": samples}

    def _outputs(self, request: Message) -> Mapping[str, Any]:
        model = self._model(request["id"])
        found = model.outputs(model.inputs())
        named = {f"output{i}": value for i, value in enumerate(found)}
        arrays: dict[str, Any] = {**{f"input:{name}": value for name, value in model.inputs().items()}, **named}
        np.savez(request["path"], **arrays)
        return {"names": list(named)}

    def _memory(self, request: Message) -> Mapping[str, Any]:
        return {"memory": self._model(request["id"]).memory().to_json()}

    def _energy(self, request: Message) -> Mapping[str, Any]:
        model, runtime = self._model(request["id"]), self._runtimes[request["id"]]
        told = measure_energy(
            model, window_s=request["window_s"], windows=request["windows"], find=lambda: find_meter(runtime)
        )
        return {"energy": told.to_json()}

    def _unload(self, request: Message) -> None:
        model = self._models.pop(request["id"], None)
        if model is not None:
            model.close()

    def _room(self, request: Message) -> Mapping[str, Any]:
        config = SessionConfig.from_json(request["config"])
        runtime = self._backend(config.runtime)
        return {"free_bytes": runtime.free_bytes(config), "total_bytes": runtime.total_bytes(config)}

    def _state(self, request: Message) -> Mapping[str, Any]:
        del request
        return {"conditions": host.conditions()}

    def _quit(self, request: Message) -> None:
        del request
        self.close()

    def _model(self, name: str) -> LoadedModel:
        self._at(name)
        if name not in self._models:
            raise Failure(Status.CRASHED, f"the model {name} is not loaded")
        return self._models[name]

    def _at(self, name: str) -> None:
        self._emit({"event": "at", "id": name})


def _timed(model: LoadedModel, k: int, loops: int = 1) -> list[Sample]:
    """Samples that can be true.

    Raises:
        Failure: A time is not above 0, or no number: it would spoil the figures of all networks of the batch.
    """
    samples = model.timed(k, loops)
    for sample in samples:
        if not sample.wall_ns > 0 or not all(value is None or math.isfinite(value) for value in sample):
            raise Failure(
                Status.CRASHED, f"a finite time above 0 is wanted of an inference; the runtime tells {sample}"
            )
    return samples


def explain(error: Exception) -> tuple[Status, str]:
    """The status and the words for what a runtime raised."""
    if isinstance(error, Failure):
        return error.status, error.message
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return Status.OUT_OF_MEMORY, text
    if isinstance(error, ImportError):
        return Status.BACKEND_UNAVAILABLE, text
    if isinstance(error, FileNotFoundError):
        return Status.INVALID_MODEL, text
    lowered = text.lower()
    for sign, status in _SIGNS:
        if sign in lowered:
            return status, text
    return (Status.INVALID_MODEL if type(error).__name__ in _INVALID_CLASSES else Status.CRASHED), text
