"""Fits the surrogates that hwnas ships in `profiles/` to benchmark tables, and writes a card beside each.

    HWNAS_TABLES=DIR python benchmarks/fit_surrogates.py --out profiles/
    python benchmarks/fit_surrogates.py --show profiles/          # the cards as a table, nothing is fitted

DIR holds `nb201_accuracy.parquet` and `hwnasbench_nb201.parquet`. One model for the errors on the three data sets and
one for each device, all as ONNX: `codes` (int64, `n x 6`) in, `values` (float64, `n x m`) out, the columns in the order
of the card's `[[outputs]]`; where the table holds cells without a result also `measurable` (float32, `n`), the
probability that a cell has one. All features are computed inside the graph.

Two families. `max-affine`: the largest of a few linear functions of how often each operation occurs, as in a roofline
model; taken where it reproduces every training cell exactly. `mlp-ensemble`: a few small networks, trained on the
absolute error, averaged; everything else.

The models are trained on 80 % of the cells and what the card says was measured on the other 20 %, which had no part
in training or in any choice. Settings were chosen on CIFAR-10, on a part of the 80 %.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import kendalltau
from sklearn.ensemble import HistGradientBoostingRegressor
from torch.nn import functional

from hwnas import atomic
from hwnas.core.architecture import Architecture
from hwnas.errors import HwnasError, TablesNotFound
from hwnas.seeding import stream, torch_generator
from hwnas.spaces.nb201 import EDGES, OPS, NasBench201
from hwnas.tables.folder import Tables
from hwnas.tables.schema import (
    ACCURACY,
    DEVICES,
    HARDWARE,
    PREFIXES,
    SPLITS,
    Kind,
    accuracy_column,
    hardware_column,
)

Array = NDArray[np.float64]

SEED = 201  # of the split and of the training
HELD_OUT = 0.2
BINS = 4  # an interval's width depends on the quarter that the prediction falls into
LEVEL = 0.95
EXACT = 1e-9  # relative; tables are printed with fewer digits, so smaller differences are floating-point noise


# ---------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Task:
    """One model to fit.

    Attributes:
        name: Folder in `profiles/`: a device's name, or "accuracy".
        kind: Table that holds the columns.
        outputs: (metric, data set) of each column of the model.
        features: "structure" (which operations are wired to input and output) or "paths" (sequences of operations).
        origin: Whose numbers they are.
        licence: Of the numbers, as far as their publisher states one.
        note: What a reader must know about the numbers.
    """

    name: str
    kind: Kind
    outputs: tuple[tuple[str, str], ...]
    features: str
    origin: str
    licence: str
    note: str


_DISCONNECTED = "Measured; values near 0 belong to cells whose output is not connected to their input."
_NOTES = {
    "edgegpu": "Measured.",
    "raspi4": _DISCONNECTED,
    "pixel3": _DISCONNECTED,
    "edgetpu": "Measured; 4,699 of the 15,625 cells have no result on this device.",
    "eyeriss": "Simulated: a sum over all operations of the cell, dead ones included.",
    "fpga": "Estimated: energy is 7 x latency in every row of the table, so it holds no further information.",
}
_ERRORS = Task(
    "accuracy",
    ACCURACY,
    (("val_error_pct", "cifar10"), *(("test_error_pct", dataset) for dataset in PREFIXES)),
    "paths",
    "NAS-Bench-201 (Dong and Yang, ICLR 2020, arXiv:2001.00326) and NATS-Bench (Dong et al., TPAMI 2021, "
    "arXiv:2009.00437): mean accuracy over the seeds after 200 epochs",
    "MIT (NAS-Bench-201, NATS-Bench); of the public exports that the table was joined from, some state none",
    "Validation exists for CIFAR-10 only: networks trained on half of its training images, judged on the other half. "
    "Test: networks trained on all of them.",
)
TASKS = (
    _ERRORS,
    *(
        Task(
            device,
            HARDWARE,
            tuple((metric, dataset) for metric in metrics for dataset in PREFIXES),
            "structure",
            "HW-NAS-Bench (Li et al., ICLR 2021, arXiv:2103.10584)",
            "MIT",
            _NOTES[device],
        )
        for device, metrics in DEVICES.items()
    ),
)


@dataclass(frozen=True)
class Data:
    """What one model is fitted to; rows in the order of the codes, whatever the order of the table.

    Attributes:
        codes: `n x 6`, int64.
        values: `n x m`, minimised, in the metrics' units; nan where there is no result.
        table: File name and the beginning of its hash.
    """

    codes: NDArray[np.int64]
    values: Array
    table: str


def load(folder: Path, task: Task) -> Data:
    """The rows of one task; accuracies become errors."""
    tables, space = Tables(folder), NasBench201()
    file = tables.file(task.kind)
    if file is None:
        raise TablesNotFound(f"{folder} has no {task.kind.file}")
    codes = np.array([space.parse(name).code for name in tables.names], dtype=np.int64)
    if task.kind is ACCURACY:
        columns = [100.0 - tables.column(task.kind, accuracy_column(d, metric)) for metric, d in task.outputs]
    else:
        columns = [tables.column(task.kind, hardware_column(d, task.name, metric)) for metric, d in task.outputs]
    order = np.lexsort(codes.T[::-1])
    return Data(codes[order], np.stack(columns, axis=1)[order], file.origin)


def _complete(values: Array) -> NDArray[np.bool_]:
    """`n`: whether a cell has all its results; a device that refuses a cell does so on every data set."""
    return np.asarray(np.isfinite(values).all(axis=1))


def split_cells(n: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """A plain random split of the cells: 80 % to train on, 20 % held out."""
    order = stream(seed, 0, "held out").permutation(n)
    held = round(HELD_OUT * n)
    return order[held:], order[:held]


def split_classes(codes: NDArray[np.int64], seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The same with whole isomorphism classes, so that no held-out cell has a twin among the others."""
    space = NasBench201()
    names = [space.canonical(Architecture(space.name, tuple(code))).code for code in codes.tolist()]
    _, classes = np.unique(names, axis=0, return_inverse=True)
    drawn = stream(seed, 0, "held-out classes").permutation(classes.max() + 1)
    held = np.isin(classes, drawn[: round(HELD_OUT * len(drawn))])
    return np.flatnonzero(~held), np.flatnonzero(held)


# --------------------------------------------------------------------------------------------------- graph


class Graph:
    """An ONNX graph under construction; `add` returns the name of what the new node computes."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[Any]) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def add(self, op: str, *inputs: str, name: str | None = None, **attributes: int) -> str:
        output = name or f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def weights(self, value: Array) -> str:
        """Numbers that are stored in half precision and used in single."""
        return self.add("Cast", self.constant(value.astype(np.float16)), to=TensorProto.FLOAT)

    def axes(self, *axes: int) -> str:
        return self.constant(np.array(axes, dtype=np.int64))

    def model(self, outputs: Sequence[tuple[str, int, Sequence[int | str]]], doc: str) -> bytes:
        """The checked model; `outputs` are (name, element type, shape)."""
        graph = helper.make_graph(
            self._nodes,
            "surrogate",
            [helper.make_tensor_value_info("codes", TensorProto.INT64, ["n", len(EDGES)])],
            [helper.make_tensor_value_info(*output) for output in outputs],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, doc_string=doc)
        onnx.checker.check_model(model, full_check=True)
        serialised: bytes = model.SerializeToString()
        return serialised


def _one_hot(graph: Graph) -> str:
    """`n x 6 x 5`: which operation is on which edge."""
    depth, values = graph.constant(np.array(len(OPS))), graph.constant(np.array([0, 1], dtype=np.float32))
    return graph.add("OneHot", "codes", depth, values, axis=-1)


def _wiring() -> Array:
    """`64 x 12`: for each set of edges that hold an operation, by its binary number (edge 0 counts 1), whether what
    each edge reads comes from the cell's input, and whether what it writes reaches the cell's output."""
    table = np.zeros((2 ** len(EDGES), 2 * len(EDGES)))
    for number, row in enumerate(table):
        present = [edge for i, edge in enumerate(EDGES) if number >> i & 1]
        reached, needed = {0}, {3}
        for target, source in present:  # sorted by target, so a node is final before an edge leaves it
            if source in reached:
                reached.add(target)
        for target, source in reversed(present):
            if target in needed:
                needed.add(source)
        row[:] = [s in reached for _, s in EDGES] + [t in needed for t, _ in EDGES]
    return table


def _wired(graph: Graph) -> tuple[str, str, str]:
    """Operations except `none` as `n x 6 x 4`, and which edges are fed and used, each `n x 6 x 1`."""
    ops = graph.add("Slice", _one_hot(graph), graph.axes(1), graph.axes(len(OPS)), graph.axes(2))
    present = graph.add("ReduceSum", ops, graph.axes(2), keepdims=0)
    binary = graph.constant(2.0 ** np.arange(len(EDGES), dtype=np.float32))
    number = graph.add("Cast", graph.add("MatMul", present, binary), to=TensorProto.INT64)
    table = graph.weights(_wiring()[:, :, None])
    row = graph.add("Gather", table, number, axis=0)
    fed = graph.add("Slice", row, graph.axes(0), graph.axes(len(EDGES)), graph.axes(1))
    used = graph.add("Slice", row, graph.axes(len(EDGES)), graph.axes(2 * len(EDGES)), graph.axes(1))
    return ops, fed, used


def _structure(graph: Graph) -> str:
    """`n x 96`: the operation on each edge; the same where the edge is fed, where it is used, and where it is both.

    Compilers drop operations that nothing uses, but often run those that only see zeros.
    """
    ops, fed, used = _wired(graph)
    fed_ops = graph.add("Mul", ops, fed)
    parts = [ops, fed_ops, graph.add("Mul", ops, used), graph.add("Mul", fed_ops, used)]
    flat = graph.axes(0, -1)
    return graph.add("Concat", *(graph.add("Reshape", part, flat) for part in parts), axis=1)


def _paths(graph: Graph) -> str:
    """`n x 124`: the operation on each live edge, and which operations lie on each of the four paths."""
    ops, fed, used = _wired(graph)
    live = graph.add("Mul", graph.add("Mul", ops, fed), used)

    def edge(target: int, source: int, *shape: int) -> str:
        picked = graph.add("Gather", live, graph.constant(np.array(EDGES.index((target, source)))), axis=1)
        return graph.add("Reshape", picked, graph.axes(0, *shape))

    two = [graph.add("Mul", edge(node, 0, 4, 1), edge(3, node, 1, 4)) for node in (1, 2)]
    three = graph.add("Mul", graph.add("Mul", edge(1, 0, 4, 1, 1), edge(2, 1, 1, 4, 1)), edge(3, 2, 1, 1, 4))
    flat = graph.axes(0, -1)
    parts = [graph.add("Reshape", part, flat) for part in (live, *two, three)]
    return graph.add("Concat", parts[0], edge(3, 0, 4), *parts[1:], axis=1)


def _words() -> Array:
    """`124 x 164`: the features of `_paths`, and sums of them over paths that spell the same word.

    A path spells the sequence of its operations without `skip_connect`: what it computes, wherever it runs. The sums
    are linear, so they vanish into the first layer and cost nothing.
    """
    own = OPS[1:]
    lengths = (1, 2, 2, 3)  # paths 3<-0, over 1, over 2, over both; each in the order of `_paths`
    spelled = [word for length in lengths for word in itertools.product(own, repeat=length)]
    words = [tuple(op for op in word if op != "skip_connect") for word in spelled]
    known = sorted(set(words))
    live = len(EDGES) * len(own)
    tie = np.zeros((live + len(words), len(known)))
    for i, word in enumerate(words):
        tie[live + i, known.index(word)] = 1.0
    return np.concatenate([np.eye(len(tie)), tie], axis=1)


FEATURES: dict[str, Callable[[Graph], str]] = {"structure": _structure, "paths": _paths}


def features(kind: str, codes: NDArray[np.int64]) -> Array:
    """What the finished model will see: computed by the very nodes that it will hold."""
    graph = Graph()
    graph.add("Identity", FEATURES[kind](graph), name="features")
    return _run(graph.model([("features", TensorProto.FLOAT, ["n", "f"])], ""), codes)[0].astype(float)


def _run(model: bytes, codes: NDArray[np.int64]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(None, {"codes": codes})
    return found


# --------------------------------------------------------------------------------------------- max-affine


def fit_max_affine(counts: Array, values: Array, pieces: int, rng: np.random.Generator) -> Array | None:
    """Least squares in turn with assigning each row to its largest piece (Magnani and Boyd 2009,
    doi:10.1007/s11081-008-9045-3, sec. 3.1), from several random partitions.

    Args:
        counts: `n x 5`, how often each operation occurs; they sum to 6, so no constant is needed.
        values: `n`.
        pieces: Number of linear functions.

    Returns:
        `5 x pieces`, or None where no start reproduces all values.
    """
    for _ in range(1 if pieces == 1 else 50):
        part = (counts @ rng.normal(size=(counts.shape[1], pieces))).argmax(axis=1)
        slopes = np.zeros((counts.shape[1], pieces))
        for _ in range(100):
            for piece in range(pieces):
                rows = part == piece
                if rows.sum() >= counts.shape[1]:
                    slopes[:, piece] = np.linalg.lstsq(counts[rows], values[rows], rcond=None)[0]
            part, before = (counts @ slopes).argmax(axis=1), part
            if (part == before).all():
                break
        if np.abs((counts @ slopes).max(axis=1) - values).max() <= EXACT * np.abs(values).max():
            return slopes
    return None


def exact_slopes(codes: NDArray[np.int64], values: Array, rng: np.random.Generator) -> Array | None:
    """`5 x m x pieces` of a max-affine function that reproduces all values, or None."""
    if np.isnan(values).any():
        return None
    counts, first = np.unique((codes[:, :, None] == np.arange(len(OPS))).sum(axis=1), axis=0, return_index=True)
    found = []
    for column in values[first].T:
        tries = (fit_max_affine(counts.astype(float), column, pieces, rng) for pieces in (1, 2, 3))
        slopes = next((slopes for slopes in tries if slopes is not None), None)
        if slopes is None:
            return None
        found.append(slopes)
    pieces = max(slopes.shape[1] for slopes in found)
    # a piece that is there twice changes no maximum
    return np.stack([np.resize(slopes.T, (pieces, len(OPS))).T for slopes in found], axis=1)


def max_affine_model(slopes: Array, doc: str) -> bytes:
    """The ONNX model of `exact_slopes`, in double precision; equal counts give equal numbers."""
    graph = Graph()
    counts = graph.add("ReduceSum", _one_hot(graph), graph.axes(1), keepdims=0)
    counts = graph.add("Cast", counts, to=TensorProto.DOUBLE)
    _, m, pieces = slopes.shape
    flat = graph.add("MatMul", counts, graph.constant(slopes.reshape(len(OPS), m * pieces)))
    each = graph.add("Reshape", flat, graph.axes(0, m, pieces))
    largest = graph.add("ReduceMax", each, graph.axes(2), keepdims=0)
    # on a grid, so that cells that cost the same tie exactly whatever the order of summation
    grid = graph.constant(np.array(1e12))
    graph.add("Div", graph.add("Round", graph.add("Mul", largest, grid)), grid, name="values")
    return graph.model([("values", TensorProto.DOUBLE, ["n", m])], doc)


# ------------------------------------------------------------------------------------------- mlp-ensemble


@dataclass(frozen=True)
class Training:
    """Settings of the networks; chosen on CIFAR-10, on a part of the training cells.

    Attributes:
        members: Networks whose outputs are averaged.
        hidden: Width of both hidden layers.
        epochs: Passes over the training cells.
        batch: Cells a step.
        lr: Peak of a one-cycle schedule; the absolute error, unlike the squared one, wants it high.
        decay: AdamW's weight decay.
    """

    members: int = 4
    hidden: int = 64
    epochs: int = 160
    batch: int = 256
    lr: float = 0.016
    decay: float = 0.01


SETTINGS = {"structure": Training(), "paths": Training(hidden=96)}


def train(x: Array, y: Array, classes: int, settings: Training, rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """Weights and biases of each layer, `members x in x out` and `members x 1 x out`.

    Args:
        x: `n x f`.
        y: `n x m`, standardised; nan entries are left out. The last `classes` columns are 0 or 1 and get the
            cross-entropy of their logit, the others the absolute error.
        classes: How many of the columns are yes or no.
        settings: Sizes and schedule.
        rng: Draws initial weights and the order of the cells.
    """
    generator = torch_generator(rng)
    inputs, wanted = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    known, wanted = ~wanted.isnan(), wanted.nan_to_num()
    sizes = [x.shape[1], settings.hidden, settings.hidden, y.shape[1]]
    k, n = settings.members, len(x)
    weights = [
        (torch.randn(k, i, o, generator=generator) * (2 / i) ** 0.5).requires_grad_()
        for i, o in itertools.pairwise(sizes)
    ]
    biases = [torch.zeros(k, 1, o, requires_grad=True) for o in sizes[1:]]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": settings.decay}, {"params": biases, "weight_decay": 0.0}], lr=settings.lr
    )
    steps = settings.epochs * -(-n // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps, pct_start=0.1)
    numbers = y.shape[1] - classes
    for _ in range(settings.epochs):
        orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(k)])
        for start in range(0, n, settings.batch):
            rows = orders[:, start : start + settings.batch]
            out, target, mask = _forward(inputs[rows], weights, biases), wanted[rows], known[rows][..., :numbers]
            # clamp: a batch without any number contributes nothing
            error = ((out - target)[..., :numbers].abs() * mask).sum() / mask.sum().clamp(min=1)
            if classes:
                logits, truth = out[..., numbers:], target[..., numbers:]
                error = error + functional.binary_cross_entropy_with_logits(logits, truth)
            optimizer.zero_grad()
            (error * k).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return [(w.detach().double().numpy(), b.detach().double().numpy()) for w, b in zip(weights, biases, strict=True)]


def _forward(x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> torch.Tensor:
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if layer:
            x = functional.silu(x)
        x = torch.baddbmm(bias, x, weight)
    return x


def fit_ensemble(
    kind: str, codes: NDArray[np.int64], values: Array, settings: Training, doc: str, rng: np.random.Generator
) -> bytes:
    """Train on all given cells and write the networks as one ONNX model."""
    measurable = _complete(values)
    yes_no = [] if measurable.all() else [measurable[:, None].astype(float)]
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    tie = _words() if kind == "paths" else None
    x = features(kind, codes)
    y = np.concatenate([(values - mean) / std, *yes_no], axis=1)
    layers = train(x if tie is None else x @ tie, y, len(yes_no), settings, rng)
    if tie is not None:
        layers[0] = (tie @ layers[0][0], layers[0][1])
    bounds = (np.nanmin(values, axis=0), np.nanmax(values, axis=0))
    return _ensemble_model(kind, layers, (mean, std), bounds, doc)


def _ensemble_model(
    kind: str, layers: Sequence[tuple[Array, Array]], scale: tuple[Array, Array], bounds: tuple[Array, Array], doc: str
) -> bytes:
    graph = Graph()
    x = FEATURES[kind](graph)
    for layer, (weight, bias) in enumerate(layers):
        if layer:
            x = graph.add("Mul", x, graph.add("Sigmoid", x))  # SiLU
        x = graph.add("Add", graph.add("MatMul", x, graph.weights(weight)), graph.weights(bias))
    x = graph.add("ReduceMean", x, graph.axes(0), keepdims=0)
    m = len(scale[0])
    outputs: list[tuple[str, int, Sequence[int | str]]] = [("values", TensorProto.DOUBLE, ["n", m])]
    if layers[-1][1].shape[-1] > m:
        logit = graph.add("Gather", x, graph.constant(np.array(m)), axis=1)
        graph.add("Sigmoid", logit, name="measurable")
        x = graph.add("Slice", x, graph.axes(0), graph.axes(m), graph.axes(1))
        outputs.append(("measurable", TensorProto.FLOAT, ["n"]))
    x = graph.add("Cast", x, to=TensorProto.DOUBLE)
    x = graph.add("Add", graph.add("Mul", x, graph.constant(scale[1])), graph.constant(scale[0]))
    # never outside the range that was trained on: no negative times
    x = graph.add("Max", x, graph.constant(bounds[0]))
    graph.add("Min", x, graph.constant(bounds[1]), name="values")
    return graph.model(outputs, doc)


# ---------------------------------------------------------------------------------------------------- card


def figures(predicted: Array, truth: Array) -> dict[str, float | int]:
    """How good the predictions of held-out cells are (`n` each).

    Numbers that differ by less than 1e-12 tie: some tables carry rounding noise of the last binary digit.
    """
    error = truth - predicted
    return {
        "n_held_out": len(truth),
        "kendall_tau": kendalltau(predicted.round(12), truth.round(12))[0],
        "mae": np.abs(error).mean(),
        "max_error": np.abs(error).max(),
        "median_relative_error": np.median(np.abs(error) / np.abs(truth)),
        "residual_std": error.std(),
    }


def interval(predicted: Array, truth: Array) -> dict[str, Any]:
    """An interval that depends on the prediction, and how often it holds.

    One half of the held-out cells gives, in each of `BINS` equally filled ranges of the prediction, the quantiles of
    truth minus prediction (with split-conformal ranks); the other half gives the coverage.
    """
    fit, check = slice(0, None, 2), slice(1, None, 2)
    edges = np.quantile(predicted[fit], np.arange(1, BINS) / BINS)
    residual, place = truth - predicted, np.searchsorted(edges, predicted, side="right")
    low, high = np.zeros(BINS), np.zeros(BINS)
    for bin_ in range(BINS):
        inside = np.sort(residual[fit][place[fit] == bin_])
        if len(inside):
            rank = int(np.floor((1 - LEVEL) / 2 * (len(inside) + 1)))
            low[bin_], high[bin_] = min(inside[max(rank - 1, 0)], 0.0), max(inside[-max(rank, 1)], 0.0)
    grid = 1e-12  # the figures' own: an exact model keeps the interval of its rounding
    held = (residual >= low[place] - grid) & (residual <= high[place] + grid)
    return {
        "interval_level": LEVEL,
        "interval_edges": edges,
        "interval_low": low,
        "interval_high": high,
        "interval_coverage": held[check].mean(),
    }


def boosted_tau(codes: NDArray[np.int64], truth: Array, train_rows: NDArray[np.intp], held: NDArray[np.intp]) -> float:
    """Kendall tau of plain gradient boosting (scikit-learn) on one-hot operations, same split: what is easy."""
    x = (codes[:, :, None] == np.arange(len(OPS))).reshape(len(codes), -1).astype(float)
    rows, cells = (part[~np.isnan(truth[part])] for part in (train_rows, held))
    trees = HistGradientBoostingRegressor(max_iter=300, random_state=0).fit(x[rows], truth[rows])
    return float(kendalltau(trees.predict(x[cells]), truth[cells].round(12))[0])


def measurable_figures(probability: NDArray[np.float32], truth: NDArray[np.bool_]) -> dict[str, float | int]:
    """How well cells without a result are told from those with one."""
    said = probability >= 0.5
    return {
        "n_held_out": len(truth),
        "n_not_measurable": int((~truth).sum()),
        "accuracy": (said == truth).mean(),
        "missed": int((said & ~truth).sum()),
        "false_alarms": int((~said & truth).sum()),
    }


def toml_value(value: object) -> str:
    """A number, text or list as TOML; numbers with 6 significant digits, which is more than they mean."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, np.ndarray | list):
        return "[" + ", ".join(toml_value(entry) for entry in value) + "]"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        text = f"{float(value):.6g}"
        return text if any(sign in text for sign in ".en") else text + ".0"
    raise TypeError(f"no TOML for {type(value).__name__}")


def toml(card: dict[str, Any]) -> str:
    """A card as text: plain keys, then tables, then lists of tables."""
    lines = ["# Written by benchmarks/fit_surrogates.py; docs/surrogates.md explains it."]
    lines += [f"{key} = {toml_value(value)}" for key, value in card.items() if not _nested(value)]
    for key, value in card.items():
        for table in value if _nested(value) and isinstance(value, list) else [value] * _nested(value):
            lines += ["", f"[[{key}]]" if isinstance(value, list) else f"[{key}]"]
            lines += [f"{name} = {toml_value(entry)}" for name, entry in table.items()]
    return "\n".join(lines) + "\n"


def _nested(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


# ----------------------------------------------------------------------------------------------------- main


@dataclass(frozen=True)
class Options:
    """What the command line asks for; see `--help`."""

    tables: Path
    out: Path
    only: tuple[str, ...]
    epochs: int | None
    seed: int
    baseline: bool


def fit_model(task: Task, data: Data, rows: NDArray[np.intp], options: Options, role: str) -> tuple[str, bytes]:
    """Name of the family and the model, from the given rows alone."""
    doc = f"hwnas surrogate of {task.name}, NAS-Bench-201 cells; fitted to {task.origin}"
    rng = stream(options.seed, 0, f"{task.name} {role}")
    codes, values = data.codes[rows], data.values[rows]
    slopes = exact_slopes(codes, values, rng)
    if slopes is not None:
        return "max-affine", max_affine_model(slopes, doc)
    settings = SETTINGS[task.features]
    if options.epochs is not None:
        settings = replace(settings, epochs=options.epochs)
    return "mlp-ensemble", fit_ensemble(task.features, codes, values, settings, doc, rng)


def fit(task: Task, options: Options) -> None:
    """Fit one model, judge it on the held-out cells, write it and its card."""
    began = time.process_time()
    data = load(options.tables, task)
    rows, held = split_cells(len(data.codes), options.seed)
    family, model = fit_model(task, data, rows, options, "fit")
    predicted, *probability = _run(model, data.codes[held])
    card: dict[str, Any] = {
        "space": "nb201",
        "name": task.name,
        "family": family,
        "model": "nb201.onnx",
        "sha256": hashlib.sha256(model).hexdigest(),
        "date": date.today().isoformat(),
        "data": {
            "origin": task.origin,
            "licence": task.licence,
            "table": data.table,
            "note": task.note,
        },
        "split": {
            "how": "plain random split of the 15,625 cells; the model was fitted to the training part only",
            "seed": options.seed,
            "n_train": len(rows),
            "n_held_out": len(held),
        },
        "versions": {"python": platform.python_version(), "numpy": np.__version__}
        | {module.__name__: module.__version__ for module in (torch, onnx, ort)},
    }
    if probability:
        card["measurable"] = measurable_figures(probability[0], _complete(data.values[held]))
    card["outputs"] = [
        {"metric": metric, "dataset": dataset}
        | ({"split": SPLITS[metric], "fidelity": "200 epochs", "seed": "mean"} if metric in SPLITS else {})
        | _judged(predicted[:, i], data.values[held, i])
        | ({"kendall_tau_boosting": boosted_tau(data.codes, data.values[:, i], rows, held)} if options.baseline else {})
        for i, (metric, dataset) in enumerate(task.outputs)
    ]
    if task.name == "accuracy":
        _judge_new_classes(task, data, options, card["outputs"])
    folder = options.out / task.name
    atomic.write(folder / card["model"], model)
    atomic.write(folder / "nb201.toml", toml(card))
    print(f"{task.name}: {family}, {len(model) / 1000:.0f} kB, {time.process_time() - began:.0f} CPU s", flush=True)


def _judged(predicted: Array, truth: Array) -> dict[str, Any]:
    known = ~np.isnan(truth)
    return figures(predicted[known], truth[known]) | interval(predicted[known], truth[known])


def _judge_new_classes(task: Task, data: Data, options: Options, outputs: list[dict[str, Any]]) -> None:
    """Adds the figures of a second model, thrown away, whose held-out cells have no twin among the training cells."""
    rows, held = split_classes(data.codes, options.seed)
    _, model = fit_model(task, data, rows, options, "new classes")
    predicted = _run(model, data.codes[held])[0]
    for i, output in enumerate(outputs):
        judged = figures(predicted[:, i], data.values[held, i])
        output["kendall_tau_new_classes"], output["mae_new_classes"] = judged["kendall_tau"], judged["mae"]


def show(folder: Path) -> str:
    """All cards of a folder as one Markdown table."""
    lines = [
        "| model | metric | data set | tau | boosting tau | MAE | residual std | max error | median rel. | coverage |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(folder.glob("*/*.toml")):
        card = tomllib.loads(path.read_text(encoding="utf-8"))
        for row in card["outputs"]:
            shown = [card["name"], row["metric"], row["dataset"], f"{row['kendall_tau']:.3f}"]
            shown += [f"{row['kendall_tau_boosting']:.3f}" if "kendall_tau_boosting" in row else "-"]
            exact = row["max_error"] < EXACT
            shown += (
                ["exact", "0", "0"] if exact else [f"{row[key]:.3g}" for key in ("mae", "residual_std", "max_error")]
            )
            shown += [f"{row['median_relative_error']:.1%}", f"{row['interval_coverage']:.1%}"]
            lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fit the surrogates that hwnas ships to benchmark tables.")
    parser.add_argument("--tables", type=Path, default=os.environ.get("HWNAS_TABLES"), help="default: $HWNAS_TABLES")
    parser.add_argument("--out", type=Path, default=Path("profiles"), help="where models and cards go")
    parser.add_argument("--only", nargs="+", choices=[task.name for task in TASKS], help="default: all models")
    parser.add_argument("--epochs", type=int, help="fewer, to try the program out")
    parser.add_argument("--seed", type=int, default=SEED, help="of the split and of the training")
    parser.add_argument("--no-baseline", action="store_true", help="leave out the comparison with boosting")
    parser.add_argument("--show", type=Path, help="print the cards of a folder as a table and stop")
    asked = parser.parse_args(arguments)
    if asked.show is not None:
        print(show(asked.show))
        return
    if asked.tables is None:
        parser.error("name the folder of tables: --tables DIR or HWNAS_TABLES=DIR")
    torch.set_num_threads(1)
    only = tuple(asked.only or [task.name for task in TASKS])
    options = Options(asked.tables, asked.out, only, asked.epochs, asked.seed, not asked.no_baseline)
    try:
        for task in TASKS:
            if task.name in options.only:
                fit(task, options)
    except HwnasError as error:
        sys.exit(str(error))
    print(show(asked.out))


if __name__ == "__main__":
    main()
