"""Architectures as vectors, for kernels: from the space's own codes and graphs, for every space alike.

Three blocks. `code` is the one-hot code. `live` is the one-hot operation of each node that lies on a path from input
to output; an operation called "none" passes nothing on, so it breaks every path through it. `shape` says what the
live graph is made of: how often each operation occurs, how many paths there are, and the most and fewest operations
with weights on one path.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.core.graph import ArchGraph
from hwnas.core.protocols import SearchSpace
from hwnas.seeding import stream
from hwnas.spaces.codes import one_hot, sample

Features = NDArray[np.float32]

BLOCKS = ("code", "live", "shape")
NOTHING = "none"  # the operation that passes nothing on
_WEIGHTLESS = ("none", "skip", "identity", "zero", "pool", "input", "output", "sum")  # parts of operations' names
_PROBES = 1000  # architectures that scale and centre are taken from
_FAR = 1e6  # longer than any path


class Encoder:
    """Encodes architectures of one space; every encoding is computed once and kept.

    Blocks are scaled so that two uniformly drawn architectures have a mean squared distance of 1 in each.

    Args:
        space: Its `choices` and `to_graph` are all that is used.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        probes = sample(space, _PROBES, rng=stream(0, 0, "encoding"))
        graphs = [space.to_graph(architecture) for architecture in probes]
        self._nodes = max(graph.n for graph in graphs)
        self._number = {op: i for i, op in enumerate(sorted({op for graph in graphs for op in graph.ops}))}
        self._known: dict[tuple[int, ...], Features] = {}
        self._parts: dict[str, slice] = {}
        raw = self._raw(probes, graphs)
        self._centre = raw.mean(axis=0)
        self._scale = np.ones(raw.shape[1], dtype=np.float32)
        for part in self._parts.values():
            spread = 2.0 * raw[:, part].var(axis=0).sum()
            self._scale[part] = 1.0 / np.sqrt(max(float(spread), 1e-9))
        first = self._parts["shape"].start
        spreads = raw.std(axis=0)
        self._counts = [
            first + i
            for op, i in self._number.items()
            if op not in ("input", "output", NOTHING) and spreads[first + i] > 0
        ]
        # of features that are scaled as `__call__` scales them
        self._count_scale = 1.0 / (spreads * self._scale)[self._counts] / np.sqrt(2.0 * max(1, len(self._counts)))

    def __call__(self, architectures: Sequence[Architecture]) -> Features:
        """`n x d` scaled and centred features of all blocks, side by side as `part` says."""
        new = [a for a in dict.fromkeys(architectures) if a.code not in self._known]
        if new:
            rows = (self._raw(new, [self.space.to_graph(a) for a in new]) - self._centre) * self._scale
            self._known.update(zip((a.code for a in new), rows, strict=True))
        if not architectures:
            return np.zeros((0, len(self._centre)), dtype=np.float32)
        return np.stack([self._known[a.code] for a in architectures])

    def operations(self, architectures: Sequence[Architecture]) -> Features:
        """`n x k`: how often each of k operations occurs in the live graph, centred, every column equally wide, so that
        two uniformly drawn architectures have a mean squared distance of 1."""
        return np.asarray(self(architectures)[:, self._counts] * self._count_scale, dtype=np.float32)

    def part(self, block: str) -> slice:
        """The columns of a block of `BLOCKS`."""
        return self._parts[block]

    def _raw(self, architectures: Sequence[Architecture], graphs: Sequence[ArchGraph]) -> Features:
        live, shape = structure(graphs, self._number, self._nodes)
        blocks = (one_hot(architectures, self.space.choices), live, shape)
        ends = np.cumsum([block.shape[1] for block in blocks]).tolist()
        self._parts = {name: slice(start, end) for name, start, end in zip(BLOCKS, [0, *ends[:-1]], ends, strict=True)}
        return np.concatenate(blocks, axis=1).astype(np.float32)


def structure(graphs: Sequence[ArchGraph], number: dict[str, int], nodes: int) -> tuple[Features, Features]:
    """The blocks `live` and `shape` of these graphs, unscaled.

    Args:
        graphs: `n` graphs of at most `nodes` nodes. Operations that `number` lacks count as no operation.
        number: Index of each operation.
        nodes: Nodes of the largest graph.

    Returns:
        `n x (nodes K)` indicators, and `n x (K + 3)`: live nodes of each of the K operations; paths from input to
        output; most and fewest operations with weights on one of them (-1 where nothing connects them).
    """
    adjacency, kinds = _dense(graphs, number, nodes)
    names = sorted(number, key=number.__getitem__)
    passes = np.array([name != NOTHING for name in names] + [False])[kinds]  # kind -1 is padding
    weighs = np.array([not any(word in name for word in _WEIGHTLESS) for name in names] + [False])[kinds]
    count, most, fewest = _paths(adjacency, passes, weighs)
    back, _, _ = _paths(adjacency[:, ::-1, ::-1].transpose(0, 2, 1), passes[:, ::-1], weighs[:, ::-1])
    alive = (count > 0) & (back[:, ::-1] > 0) & passes
    live = np.zeros((len(graphs), nodes, len(names)), dtype=np.float32)
    where = np.nonzero(alive)
    live[where[0], where[1], kinds[where]] = 1.0
    linked = count[:, -1] > 0
    ends = (np.where(linked, most[:, -1], -1.0), np.where(linked, fewest[:, -1], -1.0))
    shape = np.column_stack((live.sum(axis=1), count[:, -1], *ends))
    return live.reshape(len(graphs), -1), shape.astype(np.float32)


def _dense(
    graphs: Sequence[ArchGraph], number: dict[str, int], nodes: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """`n x N x N` adjacency and `n x N` operations. Padding (-1) stands behind the input: the output is last."""
    adjacency = np.zeros((len(graphs), nodes, nodes), dtype=np.bool_)
    kinds = np.full((len(graphs), nodes), -1, dtype=np.int64)
    hits: list[tuple[int, int, int]] = []
    for i, graph in enumerate(graphs):
        shift = nodes - graph.n
        kinds[i, 0] = number.get(graph.ops[0], -1)
        kinds[i, shift + 1 :] = [number.get(op, -1) for op in graph.ops[1:]]
        hits.extend((i, s + shift if s else 0, t + shift) for s, t in graph.edges)
    if hits:
        adjacency[tuple(np.array(hits).T)] = True
    return adjacency, kinds


def _paths(
    adjacency: NDArray[np.bool_], passes: NDArray[np.bool_], weighs: NDArray[np.bool_]
) -> tuple[Features, Features, Features]:
    """For each node (`n x N`) the paths that reach it from the first, and the most and fewest weights on one."""
    total, nodes = passes.shape
    count = np.zeros((total, nodes))
    most, fewest = np.full((total, nodes), -_FAR), np.full((total, nodes), _FAR)
    count[:, 0], most[:, 0], fewest[:, 0] = passes[:, 0], weighs[:, 0], weighs[:, 0]
    for node in range(1, nodes):
        into = adjacency[:, :node, node] & (count[:, :node] > 0) & passes[:, node, None]
        count[:, node] = (count[:, :node] * into).sum(axis=1)
        most[:, node] = np.where(into, most[:, :node], -_FAR).max(axis=1) + weighs[:, node]
        fewest[:, node] = np.where(into, fewest[:, :node], _FAR).min(axis=1) + weighs[:, node]
    return count.astype(np.float32), most.astype(np.float32), fewest.astype(np.float32)
