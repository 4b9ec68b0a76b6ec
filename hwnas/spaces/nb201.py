"""NAS-Bench-201 (Dong and Yang, ICLR 2020, arXiv 2001.00326): 15,625 cells of four nodes and six edges.

Nothing here is read from a file: official strings, official indices, isomorphism classes, parameters and
multiply-accumulates all follow from the definition of the space, so they are there without any table.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwnas.core.architecture import Architecture
from hwnas.core.graph import ArchGraph
from hwnas.core.metrics import CLASSES
from hwnas.errors import HwnasError, InvalidArchitecture, UnknownName
from hwnas.spaces import codes

if TYPE_CHECKING:
    import onnx
    from torch import nn

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP, CONV1, CONV3, POOL = range(5)

# (target, source) node of each code position: the order of the official string
EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))

CHOICES = (len(OPS),) * len(EDGES)

SIDES: Mapping[str, int] = {"cifar10": 32, "cifar100": 32, "ImageNet16-120": 16}

CHANNELS = (16, 32, 64)  # of the three stages
CELLS = 5  # per stage

# The graph form: operations on nodes 1..6 in code order between input 0 and output 7; an operation reads every
# operation that ends where its own edge starts.
_GRAPH_EDGES = ((0, 1), (0, 2), (0, 4), (1, 3), (1, 5), (2, 6), (3, 6), (4, 7), (5, 7), (6, 7))

_POSITIONS = tuple(f"edge {target}<-{source}" for target, source in EDGES)

# the official string with a group for each operation name
_STRING = re.compile(r"\|{0}0\|\+\|{0}0\|{0}1\|\+\|{0}0\|{0}1\|{0}2\|".format(r"([^|+~]*)~"))

# sha256 of the official order as little-endian int32: notices a Python whose shuffle draws differently
_ORDER_SHA256 = "825389e157822ee5ffcd9b8f78f67215adadd561ccc09b81359a8090f59ec267"


class NasBench201:
    """The space: a code names the operation on each edge, in the order of the official string.

    Code positions: 1<-0, 2<-0, 2<-1, 3<-0, 3<-1, 3<-2. Values: 0 none, 1 skip_connect, 2 nor_conv_1x1,
    3 nor_conv_3x3, 4 avg_pool_3x3.
    """

    name = "nb201"
    choices: tuple[int, ...] = CHOICES
    datasets: tuple[str, ...] = tuple(CLASSES)

    def validate(self, architecture: Architecture) -> None:
        codes.validate(self, architecture, _POSITIONS)

    def canonical(self, architecture: Architecture) -> Architecture:
        """The representative of one of the 6,466 classes that NAS-Bench-201 calls isomorphic.

        Of each class it is the member with the fewest parameters, then the smallest code. The official rule
        is a little finer than "computes the same function": see `_signatures`.
        """
        self.validate(architecture)
        own = codes.rank(np.array([architecture.code]), CHOICES)[0]
        return Architecture(self.name, tuple(codes.unrank(_representatives()[[own]], CHOICES)[0].tolist()))

    def pruned(self, architecture: Architecture) -> Architecture:
        """Dead edges, on no path of operations from input to output, set to `none`: what is really built."""
        self.validate(architecture)
        used = {(t, s): op for (t, s), op in zip(EDGES, architecture.code, strict=True) if op != NONE}
        reached = {0}
        for target, source in EDGES:  # sorted by target: a node is final before an edge leaves it
            if (target, source) in used and source in reached:
                reached.add(target)
        needed = {3}
        for target, source in reversed(EDGES):
            if (target, source) in used and target in needed:
                needed.add(source)
        live = (used.get((t, s), NONE) if s in reached and t in needed else NONE for t, s in EDGES)
        return Architecture(self.name, tuple(live))

    def to_graph(self, architecture: Architecture) -> ArchGraph:
        """Eight nodes: input, the six operations in code order (`none` included), output; fixed edges."""
        self.validate(architecture)
        return ArchGraph(("input", *(OPS[op] for op in architecture.code), "output"), _GRAPH_EDGES)

    def from_graph(self, graph: ArchGraph) -> Architecture:
        if graph.n != len(EDGES) + 2 or graph.edges != _GRAPH_EDGES:
            raise InvalidArchitecture(
                f"a graph of space 'nb201' has 8 nodes and the edges {_GRAPH_EDGES}; "
                f"got {graph.n} nodes and {graph.edges}"
            )
        if (graph.ops[0], graph.ops[-1]) != ("input", "output"):
            raise InvalidArchitecture(
                f"a graph of space 'nb201' begins with 'input' and ends with 'output'; got {graph.ops}"
            )
        return self._from_names(graph.ops[1:-1], f"graph with operations {graph.ops}")

    def format(self, architecture: Architecture) -> str:
        """The official string, e.g. `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...~0|...~1|...~2|`."""
        self.validate(architecture)
        parts = [f"{OPS[op]}~{source}" for (_, source), op in zip(EDGES, architecture.code, strict=True)]
        return f"|{parts[0]}|+|{'|'.join(parts[1:3])}|+|{'|'.join(parts[3:])}|"

    def parse(self, text: str) -> Architecture:
        """Reads the official string or a key such as `nb201:3.0.1.2.4.1`.

        Raises:
            InvalidArchitecture: Naming the position and the reason.
        """
        text = text.strip()
        if ":" in text and "|" not in text:
            architecture = Architecture.from_key(text)
            self.validate(architecture)
            return architecture
        match = _STRING.fullmatch(text)
        if match is None:
            raise InvalidArchitecture(
                "an architecture of space 'nb201' reads '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|' (the official string) or "
                f"'nb201:3.0.1.2.4.1' (a key); got {text!r}. A run's archive.csv has both of each one"
            )
        return self._from_names(match.groups(), text)

    def index_of(self, architecture: Architecture) -> int:
        """The official index, 0..15624."""
        self.validate(architecture)
        return int(_official_indices()[codes.rank(np.array([architecture.code]), CHOICES)[0]])

    def from_index(self, index: int) -> Architecture:
        """The architecture with an official index.

        Raises:
            InvalidArchitecture: If `index` is not in 0..15624.
        """
        if not 0 <= index < len(_official_order()):
            raise InvalidArchitecture(f"an index of space 'nb201' is 0..{len(_official_order()) - 1}, got {index}")
        return Architecture(self.name, tuple(codes.unrank(_official_order()[[index]], CHOICES)[0].tolist()))

    def complexity(self, architecture: Architecture, dataset: str) -> Mapping[str, float]:
        """The official figures, in millions; dead edges count, as they do there.

        "macs_m" is what the benchmark publishes as FLOPs: multiply-accumulates of convolutions and of the
        linear layer, with the linear layer's bias, without pooling and normalisation.
        """
        self.validate(architecture)
        side = self.input_shape(dataset)[1]
        params, macs = _fixed_cost(side)
        for op, kernel in ((CONV1, 1), (CONV3, 3)):
            times = CELLS * architecture.code.count(op)
            for channels, shrink in zip(CHANNELS, (1, 2, 4), strict=True):
                weights = channels * channels * kernel * kernel
                params += times * (weights + 2 * channels)
                macs += times * weights * (side // shrink) ** 2
        head = (CHANNELS[-1] + 1) * CLASSES[dataset]
        return {"params_m": (params + head) / 1e6, "macs_m": (macs + head) / 1e6}

    def input_shape(self, dataset: str) -> tuple[int, int, int]:
        if dataset not in SIDES:
            raise UnknownName("data set", dataset, SIDES)
        return (3, SIDES[dataset], SIDES[dataset])

    def build(self, architecture: Architecture, dataset: str) -> nn.Module:
        """The benchmark's network with torch's default initialisation (see `hwnas.seeding.torch_seeded`)."""
        from hwnas.spaces.nb201_torch import Network

        self.validate(architecture)
        self.input_shape(dataset)
        return Network(architecture.code, CLASSES[dataset])

    def to_onnx(
        self,
        architecture: Architecture,
        dataset: str,
        *,
        seed: int = 0,
        batch: int = 1,
        verbatim: bool = False,
    ) -> onnx.ModelProto:
        """The network with random weights, ready to be timed; see `hwnas.spaces.nb201_onnx`. Needs no torch."""
        from hwnas.spaces import nb201_onnx

        self.validate(architecture)
        self.input_shape(dataset)
        return nb201_onnx.from_seed(architecture, dataset, seed=seed, batch=batch, verbatim=verbatim)

    def _from_names(self, names: Sequence[str], text: str) -> Architecture:
        for position, name in zip(_POSITIONS, names, strict=True):
            if name not in OPS:
                raise InvalidArchitecture(f"{position} must be one of {', '.join(OPS)}; got {name!r} in {text!r}")
        return Architecture(self.name, tuple(OPS.index(name) for name in names))


def _fixed_cost(side: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of everything but cells and classifier."""
    params = 3 * CHANNELS[0] * 9 + 2 * CHANNELS[0] + 2 * CHANNELS[-1]  # stem with its norm, last norm
    macs = 3 * CHANNELS[0] * 9 * side * side
    for stage in (1, 2):
        before, after = CHANNELS[stage - 1], CHANNELS[stage]
        weights = 9 * before * after + 9 * after * after + before * after
        params += weights + 4 * after
        macs += weights * (side >> stage) ** 2
    return params, macs


def official_strings() -> tuple[str, ...]:
    """The 15,625 official strings in the order of the official indices."""
    space = NasBench201()
    return tuple(map(space.format, map(space.from_index, range(len(_official_order())))))


@functools.cache
def _official_order() -> NDArray[np.int64]:
    """Lexicographic rank of each official index.

    The benchmark's authors listed all cells lexicographically in `OPS` and shuffled the list with Python's
    generator seeded with 88 (AutoDL-Projects, exps/NATS-Bench/tss-collect.py, `traverse_net`).
    """
    order = list(range(len(OPS) ** len(EDGES)))
    random.Random(88).shuffle(order)
    ranks = np.array(order, dtype=np.int64)
    if hashlib.sha256(ranks.astype("<i4").tobytes()).hexdigest() != _ORDER_SHA256:
        raise HwnasError("this Python shuffles differently: official NAS-Bench-201 indices cannot be derived here")
    return ranks


@functools.cache
def _official_indices() -> NDArray[np.int64]:
    """Official index of each lexicographic rank: the inverse of `_official_order`."""
    indices = np.empty_like(_official_order())
    indices[_official_order()] = np.arange(len(indices))
    return indices


def _signatures(ranks: NDArray[np.int64]) -> list[str]:
    """What NAS-Bench-201 compares cells by: equal strings mean isomorphic (its `to_unique_str`).

    A node is the sorted list of what its edges bring; `none`, and any operation on a node that *is* the bare
    zero "#", bring zero; skip_connect brings its node as it is. Zeros stay in the list, so a sum of zeros is not
    the bare zero, and a skipped sum is sorted as one text, not term by term: some cells that compute the same
    function therefore keep separate classes. 6,466 classes are published; merging more would give fewer.
    """

    def edge(op: int, node: str) -> str:
        if op == NONE or node == "#":
            return "#"
        return node if op == SKIP else f"({node})@{OPS[op]}"

    signatures = []
    for a, b, c, d, e, f in codes.unrank(ranks, CHOICES).tolist():
        first = edge(a, "0")
        second = "+".join(sorted((edge(b, "0"), edge(c, first))))
        signatures.append("+".join(sorted((edge(d, "0"), edge(e, first), edge(f, second)))))
    return signatures


@functools.cache
def _representatives() -> NDArray[np.int64]:
    """For each lexicographic rank, the rank of its class's representative."""
    ranks = np.arange(len(OPS) ** len(EDGES))
    every = codes.unrank(ranks, CHOICES)
    order = np.lexsort((ranks, (every == CONV1).sum(1), (every == CONV3).sum(1)))
    best: dict[str, int] = {}
    result = np.empty_like(ranks)
    signatures = _signatures(ranks)
    for rank in order.tolist():
        result[rank] = best.setdefault(signatures[rank], rank)
    return result
