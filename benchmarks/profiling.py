"""How far measured latencies can be trusted on this machine, what they cost, and how few of them a search needs.

    python benchmarks/profiling.py --out results                        # some 15 minutes
    python benchmarks/profiling.py --out results --quick                # a few minutes
    python benchmarks/profiling.py --out results --report docs/benchmarks

- repeat: two sweeps over the same cells, each in fresh processes. Do they agree, do the intervals of one hold what the
  other says, what does a candidate cost? Beside them what a plain script does: one network after the other, 10 runs to
  warm up, the median of 50, with ONNX Runtime's default threads or with one.
- export: CPU seconds of writing networks as ONNX, and how far their outputs are from torch's on calibrated weights.
- predict: cells measured once; a predictor is fitted to 10, 30, 100 of them and asked for 100 others. Kendall tau
  against the measurements, over several draws: ours, the same without what is known of other devices, and
  multiply-accumulates alone.

Nothing is answered from a cache. Each part is one JSON file in the results folder; a part that is there is not measured
again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
from scipy.stats import kendalltau

from hwnas.core.architecture import Architecture
from hwnas.devices import load_device
from hwnas.evaluators.meter import SpaceMeter
from hwnas.predictors.costs import KnownCosts
from hwnas.predictors.encoding import Encoder
from hwnas.predictors.gp import GaussianProcess
from hwnas.predictors.latency import LatencyPredictor
from hwnas.profiling.profiler import Profiler
from hwnas.seeding import stream, torch_seeded
from hwnas.spaces.codes import sample
from hwnas.spaces.nb201 import NasBench201

SPACE, DATASET = NasBench201(), "cifar10"
DEVICES = ("cpu", "openvino")
MEASURED = (10, 30, 100)
UNSEEN = 100
DRAWS = 10

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


def sweep(device: str, architectures: Sequence[Architecture], seed: int) -> Json:
    """All cells with the protocol of searches, in a fresh worker."""
    start = time.monotonic()
    profiler = Profiler(load_device(device), cached=False, seed=seed, wait_s=600.0)
    meter = SpaceMeter(SPACE, DATASET, profiler)
    try:
        rows = [told["latency_ms"] for told in meter.measure(architectures)]
        summary = meter.summary()
    finally:
        meter.close()
    return {
        "value": [row.value for row in rows],
        "low": [row.interval[0] if row.interval else None for row in rows],
        "high": [row.interval[1] if row.interval else None for row in rows],
        "status": [str(row.status) for row in rows],
        "seconds": time.monotonic() - start,
        "device": {key: summary[key] for key in ("title", "runtime", "threads", "versions", "noise_floor")},
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


PARTS: Mapping[str, Callable[[bool], Json]] = {"repeat": repeat, "export": export, "predict": predict}


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
        told |= {"covered": float(np.mean(inside)), "half": float(np.median(widths))}
    return told


def report(folder: Path) -> str:
    """The figures of a results folder as a page."""
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in PARTS if _there(folder, name)}
    told = next(iter(read.values()))
    loads = ", ".join(f"{name} {part['load']:.1f}" for name, part in read.items())
    lines = [
        "# Measured latency: agreement, cost, prediction",
        "",
        "Made by `python benchmarks/profiling.py --out results`, then `--report docs/benchmarks`, on "
        f"{told['machine']}, {told['date'][:10]}; load average when each part began: {loads}. Random NAS-Bench-201 "
        "cells with different networks, CIFAR-10 shapes, batch 1, fp32, one thread."
        + (" Quick form: fewer cells." if told["quick"] else ""),
    ]
    if "repeat" in read:
        found = read["repeat"]
        lines += [
            "",
            f"## Two sweeps over {found['cells']} cells",
            "",
            "Preset `default`, each sweep in fresh processes. *Covered*: share of cells where the 95 % interval of one "
            "sweep holds the other's value (two independent figures with intervals of exactly the right width: 83 %). "
            "Seconds are wall time for a candidate, export and session included. Noise floor in the intervals: "
            + ", ".join(f"`{d}` {s[0]['device']['noise_floor']:.1%}" for d, s in found["devices"].items())
            + " between sessions (2.5 % is what is assumed of a device that was never calibrated).",
            "",
            "| how | Kendall tau | median difference | covered | half width | s a candidate |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        pairs = {f"`{d}` ({s[0]['device']['runtime']})": s for d, s in found["devices"].items()}
        pairs |= {name: found[name] for name in found if name.startswith("naive")}
        for name, pair in pairs.items():
            x = agreement(*pair)
            more = f"{x['covered']:.0%} | {x['half']:.1%}" if "covered" in x else "- | -"
            lines.append(f"| {name} | {x['tau']:.3f} | {x['off']:.1%} | {more} | {x['seconds']:.2f} |")
    if "export" in read:
        found = read["export"]
        lines += [
            "",
            "## Export",
            "",
            f"{found['networks']} networks written as ONNX in {found['cpu_s']:.1f} CPU s. Outputs of ONNX Runtime "
            f"against torch on {found['compared']} networks with calibrated weights: largest difference relative to "
            f"the largest output {max(found['off']):.1e} (median {np.median(found['off']):.1e}).",
        ]
    if "predict" in read:
        found = read["predict"]
        lines += [
            "",
            "## Latency from few measurements",
            "",
            f"Kendall tau on {30 if found['quick'] else UNSEEN} cells that were not measured for it, mean and standard "
            f"deviation over {DRAWS} "
            f"draws of cells out of {found['cells']}. *From scratch* is the same Gaussian process on the architecture "
            "alone, *counts* knows parameters and multiply-accumulates besides, ours also what the surrogates of the "
            "six HW-NAS-Bench devices say. *Inside* is the share of unseen measurements in ours' 95 % intervals.",
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
    return "\n".join(lines) + "\n"


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
        (asked.report / "profiling.md").write_text(report(asked.out))
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
