"""How far measured latencies can be trusted on this machine, what they cost, and how few of them a search needs.

    python benchmarks/profiling.py --out results                        # some 25 minutes
    python benchmarks/profiling.py --out results --quick                # a few minutes
    python benchmarks/profiling.py --out results --report docs/benchmarks

- repeat: two sweeps over the same cells, each in fresh processes. Do they agree, do the intervals of one hold what the
  other says, what does a candidate cost? Beside them what a plain script does: one network after the other, 10 runs to
  warm up, the median of 50, with ONNX Runtime's default threads or with one.
- busy: the same, while half as many processes again as there are CPUs (at least three) do nothing but use them.
- final: a few cells with the preset `final` again and again, each time in fresh processes and minutes apart. Do the
  intervals hold what later repeats say, of a cell and of the ratio of two?
- export: CPU seconds of writing networks as ONNX, and how far their outputs are from torch's on calibrated weights.
- modules: the same distance for torch modules that are of no space: random FBNet-like and MobileNet-like networks and
  modules as users write them (benchmarks/torch_modules.py).
- faults: a sweep of 100 networks some of which crash, hang, are killed, want too much memory or talk nonsense, and
  whose worker is killed from outside besides, against a clean sweep: who fails, and are the others' figures the same?
  On the simulated device and, with faults in a real worker (benchmarks/faulty_worker.py), on ONNX Runtime.
- predict: cells measured once; a predictor is fitted to 10, 30, 100 of them and asked for 100 others. Kendall tau
  against the measurements, over several draws: ours, the same without what is known of other devices, and
  multiply-accumulates alone.

Nothing is answered from a cache. Each part is one JSON file in the results folder; a part that is there is not measured
again. A report has a section for each part; those of parts without results in the folder stay as they are on the page.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
from scipy.stats import kendalltau

from hwnas.core.architecture import Architecture
from hwnas.core.device import Device
from hwnas.core.measurement import Status
from hwnas.devices import load_device
from hwnas.evaluators.meter import SpaceMeter
from hwnas.predictors.costs import KnownCosts
from hwnas.predictors.encoding import Encoder
from hwnas.predictors.gp import GaussianProcess
from hwnas.predictors.latency import LatencyPredictor
from hwnas.profiling.bench import Candidate
from hwnas.profiling.profiler import Profiler
from hwnas.profiling.protocol import protocol
from hwnas.profiling.transport import WORKER, ProcessTransport
from hwnas.seeding import stream, torch_seeded
from hwnas.spaces.codes import sample
from hwnas.spaces.nb201 import NasBench201

SPACE, DATASET = NasBench201(), "cifar10"
DEVICES = ("cpu", "openvino")
MEASURED = (10, 30, 100)
UNSEEN = 100
DRAWS = 10
REPEATS, PAUSE_S = 6, 45.0  # of `final`: a machine changes its pace within minutes
_DEVICE_FACTS = ("title", "runtime", "threads", "versions", "noise_floor", "calibrated")

# what goes wrong with which of the networks of a sweep, and the status that says so
FAULTS = {
    3: ("crash", Status.CRASHED),
    17: ("crash@30", Status.CRASHED),
    21: ("killed", Status.CRASHED),
    38: ("killed@30", Status.CRASHED),
    45: ("hang", Status.TIMEOUT),
    52: ("hang@30", Status.TIMEOUT),
    60: ("oom", Status.OUT_OF_MEMORY),
    66: ("invalid", Status.INVALID_MODEL),
    71: ("unsupported", Status.UNSUPPORTED_OP),
}
GARBAGE = {5: "garbage", 44: "garbage@20"}  # no fault of the network
KILLED_FROM_OUTSIDE = (12, 60)  # rounds that a sweep has asked for until then

Json = dict[str, Any]


def cells(n: int, seed: int) -> list[Architecture]:
    """Distinct networks: of isomorphic cells, which are one network, only the first."""
    found: dict[Architecture, Architecture] = {}
    rng = stream(0, seed, "benchmark cells")
    while len(found) < n:
        for architecture in sample(SPACE, n, rng=rng):
            found.setdefault(SPACE.pruned(architecture), architecture)
    return list(found.values())[:n]


def write(architecture: Architecture, path: Path) -> Path:
    path.write_bytes(SPACE.to_onnx(architecture, DATASET).SerializeToString())
    return path


def sweep(device: str, architectures: Sequence[Architecture], seed: int, *, final: bool = False) -> Json:
    """All cells with the protocol of searches, or with `final`, in fresh workers."""
    start = time.monotonic()
    profiler = Profiler(load_device(device), cached=False, seed=seed, wait_s=600.0)
    meter = SpaceMeter(SPACE, DATASET, profiler)
    try:
        rows = [told["latency_ms"] for told in meter.measure(architectures, final=final)]
        summary = meter.summary()
    finally:
        meter.close()
    return {
        "value": [row.value for row in rows],
        "low": [row.interval[0] if row.interval else None for row in rows],
        "high": [row.interval[1] if row.interval else None for row in rows],
        "own_half": [row.own_half for row in rows],
        "status": [str(row.status) for row in rows],
        "began": start,
        "seconds": time.monotonic() - start,
        "device": {key: summary[key] for key in _DEVICE_FACTS},
    }


def naive(architectures: Sequence[Architecture], threads: int) -> Json:
    """What a plain script does: in order, 10 untimed runs, then the median of 50. `threads` 0 is the default."""
    import onnxruntime

    start, values = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for number, architecture in enumerate(architectures):
            path = write(architecture, Path(folder) / f"{number}.onnx")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            asked = session.get_inputs()[0]
            feed = {asked.name: np.random.default_rng(0).standard_normal(asked.shape).astype(np.float32)}
            times = []
            for _ in range(60):
                began = time.perf_counter()
                session.run(None, feed)
                times.append(1e3 * (time.perf_counter() - began))
            values.append(float(np.median(times[10:])))
    return {"value": values, "seconds": time.monotonic() - start}


def repeat(quick: bool) -> Json:
    chosen = cells(16 if quick else 40, seed=1)
    found: Json = {"cells": len(chosen), "devices": {}}
    for device in available():
        found["devices"][device] = [sweep(device, chosen, seed) for seed in (1, 2)]
    found["naive, default threads"] = [naive(chosen, 0) for _ in range(2)]
    found["naive, one thread"] = [naive(chosen, 1) for _ in range(2)]
    return found


def busy(quick: bool) -> Json:
    """`repeat` beside processes that take all the CPU time that they can get."""
    count = max(3, (os.cpu_count() or 2) * 3 // 2)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(10.0)  # until the load average and the scheduler know of them
        return repeat(quick) | {"beside": count}
    finally:
        for other in others:
            other.kill()
            other.wait()


def final(quick: bool) -> Json:
    """The same cells several times; the devices take turns, so that both see the machine over the same minutes."""
    chosen = cells(3 if quick else 8, seed=7)
    repeats, pause = (3, 0.0) if quick else (REPEATS, PAUSE_S)
    found: Json = {"cells": len(chosen), "repeats": repeats, "devices": {device: [] for device in available()}}
    for number in range(repeats):
        if number:
            time.sleep(pause)
        for device, told in found["devices"].items():
            told.append(sweep(device, chosen, number, final=True))
    return found


def export(quick: bool) -> Json:
    chosen = cells(50 if quick else 500, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        for number, architecture in enumerate(chosen):
            write(architecture, Path(folder) / f"{number}.onnx")
        spent = time.process_time() - start
    compared = cells(10 if quick else 200, seed=3)
    return {"networks": len(chosen), "cpu_s": spent, "compared": len(compared), "off": [_off(a) for a in compared]}


def _off(architecture: Architecture) -> float:
    """Largest difference of ONNX Runtime's outputs from torch's, relative to the largest output."""
    import onnxruntime
    import torch

    from hwnas.nn.calibrate import calibrate
    from hwnas.spaces.nb201_onnx import from_module

    with torch_seeded(np.random.default_rng(0)):
        network = SPACE.build(architecture, DATASET)
    shape = SPACE.input_shape(DATASET)
    calibrate(network, shape, rng=np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(from_module(network, shape[1]).SerializeToString())
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        asked = session.get_inputs()[0]
        given = np.random.default_rng(1).standard_normal(asked.shape).astype(np.float32)
        answer = session.run(None, {asked.name: given})[0]
    with torch.no_grad():
        truth = network(torch.from_numpy(given)).numpy()
    return float(np.abs(answer - truth).max() / max(np.abs(truth).max(), 1e-12))


def modules(quick: bool) -> Json:
    """Networks of no space: written by `hwnas.export_module`, accepted whatever it says of their outputs, and compared
    here."""
    import torch
    from torch_modules import SIDE, families

    from hwnas import export_module
    from hwnas.nn.calibrate import calibrate

    rows = []
    rng = np.random.default_rng(4)
    with tempfile.TemporaryDirectory() as folder, torch_seeded(np.random.default_rng(0)):
        for number, (family, network) in enumerate(families(3 if quick else 50, rng)):
            calibrate(network, (3, SIDE, SIDE), rng=np.random.default_rng(number))
            path = Path(folder) / f"{number}.onnx"
            done = export_module(network, torch.zeros(1, 3, SIDE, SIDE), path, tolerance=1.0)
            given = np.random.default_rng(number + 1).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)
            off = _distance(path, given, network)
            rows.append({"family": family, "kind": type(network).__name__, "exporter": done.exporter, "off": off})
    return {"networks": rows}


def _distance(path: Path, given: Any, network: Any) -> float:
    """Largest difference of ONNX Runtime's outputs from torch's in double precision, relative to the largest output."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answer = session.run(None, {session.get_inputs()[0].name: given})[0]
    with torch.no_grad():
        truth = network.double()(torch.from_numpy(given).double()).numpy()
    return float(np.abs(answer - truth).max() / max(np.abs(truth).max(), 1e-12))


class _Killed(ProcessTransport):
    """A worker that somebody kills while it is in some of its rounds."""

    def __init__(self, command: Sequence[str], rounds: Sequence[int]) -> None:
        super().__init__(command)
        self._when, self._rounds = set(rounds), 0

    def call(self, request: Any, *, timeout: float) -> dict[str, Any]:
        if request["op"] == "round":
            self._rounds += 1
            if self._rounds in self._when and self._process is not None:
                threading.Timer(0.005, os.kill, (self._process.pid, signal.SIGKILL)).start()
        return super().call(request, timeout=timeout)


def faults(quick: bool) -> Json:
    chosen = cells(100, seed=6)
    names = [f"net-{i:02}" for i in range(len(chosen))]
    expected = {names[i]: str(status) for i, (_, status) in FAULTS.items()}
    words = {names[i]: word for i, word in ({i: word for i, (word, _) in FAULTS.items()} | GARBAGE).items()}
    how = "quick" if quick else "default"
    found: Json = {"networks": len(names), "protocol": how, "expected": expected, "runtimes": {}}
    with tempfile.TemporaryDirectory() as folder:
        clean, faulty = Path(folder) / "clean", Path(folder) / "faulty"
        for place in (clean, faulty):
            place.mkdir()
            for name, architecture in zip(names, chosen, strict=True):
                write(architecture, place / f"{name}.onnx")
        # simulated: the runtime itself plays all faults
        noise = {"seed": 5, "session": 0.02, "slow": 1.3, "tail": 0.02}
        plain = [sys.executable, "-m", WORKER]
        found["runtimes"]["fake"] = _sweeps(
            (_simulated(noise), clean, plain, ()),
            (
                _simulated(noise | {f"fault.{name}": word for name, word in words.items()}),
                clean,
                plain,
                KILLED_FROM_OUTSIDE,
            ),
            names,
            how,
        )
        # real: processes end, hang and are killed; what is wrong with a file is in the file
        for name, word in words.items():
            _spoil(faulty / f"{name}.onnx", word)
        script = str(Path(__file__).with_name("faulty_worker.py"))
        broken = {name: word for name, word in words.items() if word not in ("oom", "invalid", "unsupported")}
        found["runtimes"]["ort-cpu"] = _sweeps(
            (load_device("cpu"), clean, plain, ()),
            (load_device("cpu"), faulty, [sys.executable, script, json.dumps(broken)], KILLED_FROM_OUTSIDE),
            names,
            how,
        )
    return found


def _sweeps(clean: tuple[Any, ...], faulty: tuple[Any, ...], names: Sequence[str], how: str) -> Json:
    """A clean sweep, one with faults, and a clean one again: two clean ones differ by what the machine does."""
    asked = (("clean", clean), ("faulty", faulty), ("again", clean))
    return {word: _swept(*told, names, how) for word, told in asked}


def _swept(
    device: Device, folder: Path, command: Sequence[str], kills: Sequence[int], names: Sequence[str], how: str
) -> Json:
    """One sweep: by network its status and, where it has one, its latency with both ends of the interval."""
    start = time.monotonic()
    with Profiler(device, cached=False, wait_s=600.0, transport=lambda: _Killed(command, kills)) as profiler:
        asked = [Candidate(name, folder / f"{name}.onnx") for name in names]
        records = list(profiler.measure(asked, protocol(how)))
        told = profiler.describe()
    latencies = {r.subject.id: r.latency for r in records}
    return {
        "status": {r.subject.id: str(r.status) for r in records},
        "retries": sum(r.retries for r in records),
        "latency": {name: None if x is None else [x.value, x.low, x.high] for name, x in latencies.items()},
        "seconds": time.monotonic() - start,
        "device": {key: told[key] for key in _DEVICE_FACTS},
    }


def _simulated(options: Json) -> Device:
    known = (("fake",), ("fp32",), ("latency_ms",))
    return Device("simulated", "simulated device", "cpu", *known, "simulated", host="local", options=options)


def _spoil(path: Path, word: str) -> None:
    """Make a model's file one that a real runtime cannot run, for the faults that are in files."""
    from onnx import TensorProto, helper, numpy_helper

    if word == "invalid":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif word in ("oom", "unsupported"):
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in ("x", "y")]
        size = numpy_helper.from_array(np.array([2**36]), "size")  # 256 GiB of float32
        nodes = [helper.make_node("Expand", ["x", "size"], ["large"]), helper.make_node("ReduceMax", ["large"], ["y"])]
        if word == "unsupported":
            nodes = [helper.make_node("NobodyKnows", ["x", "size"], ["y"])]
        graph = helper.make_graph(nodes, word, values[:1], values[1:], [size])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        path.write_bytes(model.SerializeToString())


def predict(quick: bool) -> Json:
    chosen = cells((30 if quick else max(MEASURED)) + (30 if quick else UNSEEN), seed=5)
    found: Json = {"cells": len(chosen), "devices": {}}
    for device in available():
        told = sweep(device, chosen, seed=5)
        found["devices"][device] = told | {"curve": _curve(device, chosen, told, quick)}
    return found


def _curve(device: str, chosen: Sequence[Architecture], told: Json, quick: bool) -> list[Json]:
    values = np.array(told["value"])
    halves = (np.array(told["high"], dtype=float) - np.array(told["low"], dtype=float)) / 2
    unseen = 30 if quick else UNSEEN
    rows = []
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(len(chosen))
        test = order[:unseen]
        asked = [chosen[i] for i in test]
        for n in (n for n in MEASURED if n <= len(chosen) - unseen):
            known = order[unseen : unseen + n]
            taught = [chosen[i] for i in known]
            ours = LatencyPredictor(SPACE, DATASET, device)
            ours.fit(taught, values[known], halves[known])
            value, low, high = ours.interval(asked)
            counts = LatencyPredictor(SPACE, DATASET, device, known=KnownCosts(SPACE, DATASET))
            counts.fit(taught, values[known], halves[known])
            scratch = GaussianProcess(Encoder(SPACE), iterations=20)
            scratch.fit(taught, values[known][:, None], rng=np.random.default_rng(0))
            rows.append(
                {
                    "draw": draw,
                    "n": n,
                    "tau": kendalltau(value, values[test]).statistic,
                    "tau counts": kendalltau(counts.interval(asked)[0], values[test]).statistic,
                    "tau scratch": kendalltau(scratch.predict(asked).mean[:, 0], values[test]).statistic,
                    "tau macs": kendalltau([_macs(a) for a in asked], values[test]).statistic,
                    "off": float(np.median(np.abs(value / values[test] - 1))),
                    "inside": float(np.mean((low <= values[test]) & (values[test] <= high))),
                }
            )
    return rows


def _macs(architecture: Architecture) -> float:
    return float(SPACE.complexity(architecture, DATASET)["macs_m"])


def available() -> list[str]:
    return [d for d in DEVICES if d != "openvino" or importlib.util.find_spec("openvino") is not None]


PARTS: Mapping[str, Callable[[bool], Json]] = {
    "repeat": repeat,
    "busy": busy,
    "final": final,
    "faults": faults,
    "export": export,
    "modules": modules,
    "predict": predict,
}


def agreement(first: Json, second: Json) -> Json:
    """How two sweeps of the same cells agree."""
    a, b = np.array(first["value"], dtype=float), np.array(second["value"], dtype=float)
    told = {
        "tau": float(kendalltau(a, b).statistic),
        "off": float(np.median(np.abs(b / a - 1))),
        "seconds": (first["seconds"] + second["seconds"]) / 2 / len(a),
    }
    if "low" in first:
        inside = [
            np.mean((np.array(x["low"], float) <= y) & (y <= np.array(x["high"], float)))
            for x, y in ((first, b), (second, a))
        ]
        widths = (np.array(first["high"], float) - np.array(first["low"], float)) / 2 / a
        ok = [status == "ok" for x in (first, second) for status in x["status"]]
        told |= {"covered": float(np.mean(inside)), "half": float(np.median(widths)), "ok": float(np.mean(ok))}
    return told


def held(values: Any, halves: Any) -> Json:
    """How what was measured several times agrees with its intervals.

    Args:
        values: Logarithms, a row for each repeat, a column for each figure.
        halves: Half widths of their 95 % intervals, on the same scale.

    Returns:
        Shares of all pairs of two repeats' figures where the interval of one holds the other's value (`one`), and where
        the joint interval of both holds their difference (`joint`); the standard deviation between repeats (root of the
        mean square over figures) and the median half width, relative.
    """
    first, second = np.nonzero(~np.eye(len(values), dtype=bool))  # either way round
    off = np.abs(values[first] - values[second])
    return {
        "one": float(np.mean(off <= halves[first])),
        "joint": float(np.mean(off <= np.hypot(halves[first], halves[second]))),
        "spread": float(np.sqrt(np.mean(np.var(values, axis=0, ddof=1)))),
        "half": float(np.median(halves)),
    }


def repeated(sweeps: Sequence[Json]) -> Json:
    """`held` of several sweeps' figures (`figures`), and of the ratios of all two of their cells by the half widths
    that are for comparing them (`ratios`); cells without a figure in one of the sweeps are left out (`left_out`)."""
    value, low, high, own = (
        np.array([sweep[key] for sweep in sweeps], dtype=float) for key in ("value", "low", "high", "own_half")
    )
    there = np.isfinite(value).all(axis=0) & np.isfinite(low).all(axis=0)
    value, low, high, own = (told[:, there] for told in (value, low, high, own))
    figures, halves = np.log(value), np.log(high / low) / 2
    # a figure without one of its own is compared by its whole interval
    own = np.where(np.isfinite(own), np.arcsinh(own / value), halves)
    a, b = np.triu_indices(figures.shape[1], 1)
    return {
        "figures": held(figures, halves),
        "ratios": held(figures[:, a] - figures[:, b], np.hypot(own[:, a], own[:, b])),
        "left_out": int((~there).sum()),
    }


def report(folder: Path, before: str = "") -> str:
    """The figures of a results folder as a page.

    Args:
        folder: Where the parts' results are.
        before: The page as it was: sections of parts without results are taken from it.
    """
    kept = {text.partition("\n")[0]: text.strip() for text in re.split(r"^(?=## )", before, flags=re.MULTILINE)[1:]}
    sections = [TITLE]
    for name, (start, told) in SECTIONS.items():
        if _there(folder, name):
            found = json.loads((folder / f"{name}.json").read_text())
            sections.append("\n".join([*told(found), "", _provenance(found)]))
        else:
            sections += [text for heading, text in kept.items() if heading.startswith(f"## {start}")]
    return "\n\n".join(sections) + "\n"


TITLE = """# Measured latency: agreement, faults, exports, prediction

Made by `python benchmarks/profiling.py --out results`, then `--report docs/benchmarks`. Random NAS-Bench-201 cells with
different networks, CIFAR-10 shapes, batch 1, fp32, one thread, unless a section says otherwise."""


def _provenance(found: Json) -> str:
    quick = "; quick form: fewer networks" if found["quick"] else ""
    return f"*{found['date'][:10]}, {found['machine']}; load average {found['load']:.1f} when it began{quick}.*"


def _floor(device: Json) -> str:
    """The noise floor that intervals contain, and whether somebody measured it."""
    state = {True: "calibrated", False: "assumed, never calibrated", None: "not recorded whether calibrated"}
    return f"{device['noise_floor']:.1%} ({state[device.get('calibrated')]})"


def _repeat_section(found: Json) -> list[str]:
    floors = ", ".join(f"`{d}` {_floor(s[0]['device'])}" for d, s in found["devices"].items())
    title = f"Two sweeps over {found['cells']} cells"
    if "beside" in found:
        title = f"Beside {found['beside']} busy processes: two sweeps over {found['cells']} cells"
    lines = [
        f"## {title}",
        "",
        "Preset `default`, each sweep in fresh processes. *Covered*: share of cells where the 95 % interval of one "
        "sweep holds the other's value (two independent figures with intervals of exactly the right width: 83 %). "
        "*Converged*: figures of both sweeps whose interval within the session became as narrow as the preset wants. "
        f"Seconds are wall time for a candidate, export and session included. Noise floor in the intervals: {floors} "
        "between sessions.",
        "",
        "| how | Kendall tau | median difference | covered | half width | converged | s a candidate |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    pairs = {f"`{d}` ({s[0]['device']['runtime']})": s for d, s in found["devices"].items()}
    pairs |= {name: found[name] for name in found if name.startswith("naive")}
    for name, pair in pairs.items():
        x = agreement(*pair)
        more = f"{x['covered']:.0%} | {x['half']:.1%} | {x['ok']:.0%}" if "covered" in x else "- | - | -"
        lines.append(f"| {name} | {x['tau']:.3f} | {x['off']:.1%} | {more} | {x['seconds']:.2f} |")
    return lines


def _final_section(found: Json) -> list[str]:
    floors = ", ".join(f"`{d}` {_floor(s[0]['device'])}" for d, s in found["devices"].items())
    lines = [
        f"## Final figures: {found['cells']} cells measured {found['repeats']} times",
        "",
        "Preset `final`, each time in fresh processes. *Held by one*: pairs of two repeats of a figure where the 95 % "
        "interval of one holds the other's value (independent figures with intervals of exactly the right width: "
        "83 %); *held by both*: where the joint interval of both holds their difference (then 95 %). Ratios are those "
        "of all two cells of a repeat, by the part of their intervals that is their own (`own_half`). Spread is the "
        "standard deviation between repeats. *Converged*: figures whose interval within the session became as narrow "
        "as the preset wants. *Apart*: minutes from one repeat to the next. Noise floor in the intervals: "
        f"{floors} between sessions.",
        "",
        "| how | what | held by one | held by both | spread | half width | converged | apart | s a repeat |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for device, sweeps in found["devices"].items():
        told = repeated(sweeps)
        converged = np.mean([status == "ok" for sweep in sweeps for status in sweep["status"]])
        apart = np.median(np.diff([sweep["began"] for sweep in sweeps])) / 60
        left_out = f", {told['left_out']} without a figure" if told["left_out"] else ""
        for what in ("figures", "ratios"):
            x = told[what]
            lines.append(
                f"| `{device}` ({sweeps[0]['device']['runtime']}{left_out}) | {what} | {x['one']:.0%} | "
                f"{x['joint']:.0%} | {x['spread']:.2%} | {x['half']:.2%} | {converged:.0%} | {apart:.1f} | "
                f"{np.mean([sweep['seconds'] for sweep in sweeps]):.0f} |"
            )
    return lines


def unharmed(clean: Json, faulty: Json) -> Json:
    """How the networks that have a figure in both sweeps compare."""
    names = [name for name, x in clean["latency"].items() if x is not None and faulty["latency"][name] is not None]
    a, b = (np.array([sweep["latency"][name] for name in names]) for sweep in (clean, faulty))
    joint = np.hypot(*(np.log(x[:, 2] / x[:, 1]) / 2 for x in (a, b)))
    off = np.abs(np.log(b[:, 0] / a[:, 0]))
    return {
        "networks": len(names),
        "inside": int((off <= joint).sum()),
        "off": float(np.median(np.abs(b[:, 0] / a[:, 0] - 1))),
        "worst": float((off / joint).max()),
        "tau": float(kendalltau(a[:, 0], b[:, 0]).statistic),
    }


def _faults_section(found: Json) -> list[str]:
    kinds = ", ".join(f"{name} ({word})" for name, word in sorted(found["expected"].items()))
    lines = [
        f"## Faults in a sweep of {found['networks']}",
        "",
        f"Preset `{found['protocol']}`. {len(found['expected'])} networks go wrong, when they are loaded or while they "
        f"are timed: {kinds}. Two more write garbage to standard output, and the worker is killed from outside "
        f"{len(KILLED_FROM_OUTSIDE)} times in its rounds; neither is a network's fault. `fake` is the simulated device "
        "in a real worker process; in `ort-cpu` processes really end, hang and are killed, and models are really too "
        "large, cut in half or unknown. *Within*: figures that differ from those of a clean sweep by no more than the "
        "joint 95 % interval, *farthest* the largest difference in widths of that interval; in brackets the same of a "
        "second clean sweep, afterwards, against the first: what the machine alone does.",
        "",
        "| runtime | noise floor | failed exactly as they should | others with a figure | within | farthest | "
        "median difference | Kendall tau | s clean | s with faults |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for runtime, told in found["runtimes"].items():
        clean, faulty = told["clean"], told["faulty"]
        failed = {name: word for name, word in faulty["status"].items() if faulty["latency"][name] is None}
        wrong = {n for n in failed.keys() | found["expected"].keys() if failed.get(n) != found["expected"].get(n)}
        exact = f"{len(failed)} of {len(found['expected'])}" if not wrong else f"no: {', '.join(sorted(wrong))}"
        x, y = unharmed(clean, faulty), unharmed(clean, told["again"])
        lines.append(
            f"| `{runtime}` | {_floor(clean['device'])} | {exact} | {x['networks']} of "
            f"{found['networks'] - len(found['expected'])} | "
            f"{x['inside'] / x['networks']:.0%} ({y['inside'] / y['networks']:.0%}) | "
            f"{x['worst']:.1f} ({y['worst']:.1f}) | {x['off']:.1%} ({y['off']:.1%}) | "
            f"{x['tau']:.3f} ({y['tau']:.3f}) | {clean['seconds']:.0f} | {faulty['seconds']:.0f} |"
        )
    return lines


def _export_section(found: Json) -> list[str]:
    return [
        "## Export",
        "",
        f"{found['networks']} networks written as ONNX in {found['cpu_s']:.1f} CPU s. Outputs of ONNX Runtime "
        f"against torch on {found['compared']} networks with calibrated weights: largest difference relative to "
        f"the largest output {max(found['off']):.1e} (median {np.median(found['off']):.1e}).",
    ]


def _modules_section(found: Json) -> list[str]:
    lines = [
        "## Modules of no space",
        "",
        "Written by `hwnas.export_module`, 3 x 32 x 32, calibrated norms; outputs of ONNX Runtime against torch's in "
        "double precision on normal numbers, relative to the largest output (promised: 1e-4).",
        "",
        "| networks | how many | exporter | largest difference | median |",
        "| --- | --- | --- | --- | --- |",
    ]
    groups: dict[str, list[Json]] = {}
    for row in found["networks"]:
        groups.setdefault(row["family"], []).append(row)
    for family, rows in groups.items():
        used = [row["exporter"] for row in rows]
        exporters = ", ".join(f"{used.count(one)} {one}" for one in dict.fromkeys(used))
        kinds = sorted({row["kind"] for row in rows})
        name = family if len(kinds) == 1 else f"{family} ({', '.join(kinds)})"
        off = [row["off"] for row in rows]
        lines.append(f"| {name} | {len(rows)} | {exporters} | {max(off):.1e} | {np.median(off):.1e} |")
    return lines


def _predict_section(found: Json) -> list[str]:
    floors = ", ".join(f"`{d}` {_floor(told['device'])}" for d, told in found["devices"].items())
    lines = [
        "## Latency from few measurements",
        "",
        f"Kendall tau on {30 if found['quick'] else UNSEEN} cells that were not measured for it, mean and standard "
        f"deviation over {DRAWS} "
        f"draws of cells out of {found['cells']}. *From scratch* is the same Gaussian process on the architecture "
        "alone, *counts* knows parameters and multiply-accumulates besides, ours also what the surrogates of the "
        "six HW-NAS-Bench devices say. *Inside* is the share of unseen measurements in ours' 95 % intervals. Noise "
        f"floor of the measurements: {floors}.",
        "",
        "| device | measured | ours | counts | from scratch | MACs alone | median error of ours | inside |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for device, told in found["devices"].items():
        for n in sorted({row["n"] for row in told["curve"]}):
            rows = [row for row in told["curve"] if row["n"] == n]
            taus = [_spread([row[key] for row in rows]) for key in ("tau", "tau counts", "tau scratch", "tau macs")]
            rest = f"{np.mean([r['off'] for r in rows]):.1%} | {np.mean([r['inside'] for r in rows]):.0%}"
            lines.append(f"| `{device}` | {n} | {' | '.join(taus)} | {rest} |")
    return lines


# how a section's heading begins, and what writes it
SECTIONS: Mapping[str, tuple[str, Callable[[Json], list[str]]]] = {
    "repeat": ("Two sweeps", _repeat_section),
    "busy": ("Beside", _repeat_section),
    "final": ("Final figures", _final_section),
    "faults": ("Faults", _faults_section),
    "export": ("Export", _export_section),
    "modules": ("Modules", _modules_section),
    "predict": ("Latency from few", _predict_section),
}


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def _there(folder: Path, name: str) -> bool:
    return (folder / f"{name}.json").exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--quick", action="store_true", help="fewer cells")
    parser.add_argument("--report", type=Path, help="only write profiling.md of the results into this folder")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.report is not None:
        if not any(_there(asked.out, name) for name in PARTS):
            parser.error(f"{asked.out} holds no results: run without --report first")
        page = asked.report / "profiling.md"
        page.write_text(report(asked.out, page.read_text() if page.exists() else ""))
        return
    for name in [asked.only] if asked.only else PARTS:
        if _there(asked.out, name):
            continue
        context = {
            "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {_processor()}",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "load": os.getloadavg()[0],
            "quick": asked.quick,
        }
        found = PARTS[name](asked.quick) | context
        (asked.out / f"{name}.json").write_text(json.dumps(found))
        print(f"{name}: done")
    print(report(asked.out))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


if __name__ == "__main__":
    main()
