"""The graph view of an architecture: what graph networks read. Derived from a code, never stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import InvalidArchitecture


@dataclass(frozen=True, slots=True)
class ArchGraph:
    """A directed acyclic graph with operations on the nodes, in topological order.

    Attributes:
        ops: Operation name per node (`n` of them); the first is "input", the last "output".
        edges: Pairs (source, target) with source < target, sorted and unique.
    """

    ops: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        n = len(self.ops)
        for source, target in self.edges:
            if not 0 <= source < target < n:
                raise InvalidArchitecture(
                    f"graph edges go from a lower to a higher node below {n}; got {(source, target)}"
                )
        if tuple(sorted(set(self.edges))) != self.edges:
            raise InvalidArchitecture(f"graph edges must be sorted and unique; got {self.edges}")

    @property
    def n(self) -> int:
        """Number of nodes."""
        return len(self.ops)

    def adjacency(self) -> NDArray[np.bool_]:
        """`n x n`; entry (i, j) is true where an edge leads from node i to node j."""
        matrix = np.zeros((self.n, self.n), dtype=np.bool_)
        for source, target in self.edges:
            matrix[source, target] = True
        return matrix

    def edge_index(self) -> NDArray[np.int64]:
        """`2 x e`, sources above targets: torch-geometric's convention."""
        return np.asarray(self.edges, dtype=np.int64).reshape(-1, 2).T.copy()

    def live(self) -> NDArray[np.bool_]:
        """`n`; true for nodes on some path from the first to the last node (these two always included)."""
        forward = np.zeros(self.n, dtype=np.bool_)
        backward = np.zeros(self.n, dtype=np.bool_)
        forward[0] = backward[-1] = True
        for source, target in self.edges:  # sorted by source: sources are final before they are read
            forward[target] |= forward[source]
        for source, target in reversed(self.edges):
            backward[source] |= backward[target]
        alive = forward & backward
        alive[0] = alive[-1] = True
        return alive

    def pruned(self) -> ArchGraph:
        """The graph without nodes and edges that lie on no path from input to output."""
        alive = self.live()
        number = np.cumsum(alive) - 1
        edges = tuple(sorted((int(number[s]), int(number[t])) for s, t in self.edges if alive[s] and alive[t]))
        # input and output are kept even when nothing connects them; an edge between dead ends is not
        reachable = bool(edges) or self.n <= 1
        ops = tuple(op for op, keep in zip(self.ops, alive, strict=True) if keep)
        return ArchGraph(ops, edges if reachable else ())

    def canonical_hash(self) -> str:
        """Equal for isomorphic graphs: iterated neighbour hashing (as NAS-Bench-101, Ying et al. 2019, does).

        Returns:
            32 hex digits. Different graphs share a digest only where Weisfeiler-Lehman refinement on
            in- and out-neighbours cannot tell them apart.
        """
        into: list[list[int]] = [[] for _ in self.ops]
        out: list[list[int]] = [[] for _ in self.ops]
        for source, target in self.edges:
            into[target].append(source)
            out[source].append(target)
        colours = [
            _digest(f"{len(into[v])}|{len(out[v])}|{self.ops[v]}|{v == 0}|{v == self.n - 1}") for v in range(self.n)
        ]
        for _ in range(self.n):
            colours = [
                _digest(
                    ",".join(sorted(colours[u] for u in into[v]))
                    + "|"
                    + ",".join(sorted(colours[w] for w in out[v]))
                    + "|"
                    + colours[v]
                )
                for v in range(self.n)
            ]
        return _digest(",".join(sorted(colours)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
