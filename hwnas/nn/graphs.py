"""Batches of architecture graphs as dense tensors, and their conversions.

Dense form (for decoding and sampling, N <= about 30): node types `B x N` and adjacency `B x N x N`, where entry
(s, t) is true for an edge from s to t. Node types are indices into a vocabulary whose first entries are "output"
and "input"; a graph ends at its first "output" node, and everything behind is padding of the same type without
edges. Ragged form (for message passing on graphs of different size): torch-geometric's node types `v`,
`edge_index` `2 x e` and `batch` `v`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hwnas.core.graph import ArchGraph
from hwnas.errors import InvalidArchitecture

OUTPUT, INPUT = 0, 1  # positions of these two types in every vocabulary


@dataclass(frozen=True, slots=True)
class GraphBatch:
    """Graphs in dense form.

    Attributes:
        types: `B x N` node types (int64).
        adjacency: `B x N x N` booleans, strictly upper triangular.
    """

    types: Tensor
    adjacency: Tensor

    def __len__(self) -> int:
        return self.types.shape[0]

    def sizes(self) -> Tensor:
        """`B` numbers of nodes: up to the first output, or N where there is none."""
        is_output = self.types == OUTPUT
        first = is_output.int().argmax(dim=1) + 1
        return torch.where(is_output.any(dim=1), first, self.types.shape[1])

    def select(self, rows: Tensor) -> GraphBatch:
        """The graphs at these indices (or under this mask)."""
        return GraphBatch(self.types[rows], self.adjacency[rows])


@lru_cache(maxsize=32)
def edge_pairs(nodes: int) -> tuple[Tensor, Tensor]:
    """Sources and targets of the N(N-1)/2 possible edges, ordered by target: 0->1; 0->2, 1->2; 0->3, ..."""
    targets, sources = torch.tril_indices(nodes, nodes, offset=-1)
    return sources, targets


def edge_bits(adjacency: Tensor) -> Tensor:
    """`B x N(N-1)/2` entries of `B x N x N` matrices in the order of `edge_pairs`."""
    sources, targets = edge_pairs(adjacency.shape[-1])
    return adjacency[..., sources, targets]


def adjacency_from_bits(bits: Tensor, nodes: int) -> Tensor:
    """`B x N x N` matrices of the entries' dtype: the inverse of `edge_bits`."""
    sources, targets = edge_pairs(nodes)
    matrix = bits.new_zeros((*bits.shape[:-1], nodes, nodes))
    matrix[..., sources, targets] = bits
    return matrix


def to_dense(graphs: Sequence[ArchGraph], vocabulary: Sequence[str], nodes: int) -> GraphBatch:
    """Dense tensors of these graphs.

    Args:
        graphs: At most `nodes` nodes each.
        vocabulary: Names of the node types; "output" first, then "input".
        nodes: N.

    Raises:
        InvalidArchitecture: If a graph has too many nodes or an operation that is not in the vocabulary.
    """
    number = {name: i for i, name in enumerate(vocabulary)}
    rows: list[list[int]] = []
    hits: list[tuple[int, int, int]] = []
    for i, graph in enumerate(graphs):
        if graph.n > nodes:
            raise InvalidArchitecture(f"at most {nodes} nodes fit; graph {i} has {graph.n}")
        try:
            rows.append([number[op] for op in graph.ops] + [OUTPUT] * (nodes - graph.n))
        except KeyError as error:
            raise InvalidArchitecture(f"graph {i} has the operation {error}; known: {', '.join(vocabulary)}") from None
        hits.extend((i, s, t) for s, t in graph.edges)
    adjacency = torch.zeros((len(graphs), nodes, nodes), dtype=torch.bool)
    if hits:
        adjacency[tuple(torch.tensor(hits).T)] = True
    return GraphBatch(torch.tensor(rows, dtype=torch.int64).reshape(len(graphs), nodes), adjacency)


def from_dense(batch: GraphBatch, vocabulary: Sequence[str]) -> list[ArchGraph]:
    """The graphs as `ArchGraph`s, each cut behind its first output node. Inverse of `to_dense`."""
    types = batch.types.tolist()
    edges: list[list[tuple[int, int]]] = [[] for _ in types]
    for i, s, t in batch.adjacency.nonzero().tolist():  # sorted by graph, source, target
        edges[i].append((s, t))
    return [
        ArchGraph(tuple(vocabulary[k] for k in row[:size]), tuple(edge for edge in found if edge[1] < size))
        for row, found, size in zip(types, edges, batch.sizes().tolist(), strict=True)
    ]


def to_ragged(batch: GraphBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Node types `v`, `edge_index` `2 x e` and `batch` `v` (graph of each node) without padding."""
    count, nodes = batch.types.shape
    real = torch.arange(nodes)[None, :] < batch.sizes()[:, None]
    number = (real.flatten().cumsum(0) - 1).reshape(count, nodes)
    graph, source, target = (batch.adjacency & real[:, :, None] & real[:, None, :]).nonzero(as_tuple=True)
    owner = torch.arange(count)[:, None].expand(count, nodes)
    return batch.types[real], torch.stack((number[graph, source], number[graph, target])), owner[real]


def from_ragged(types: Tensor, edge_index: Tensor, batch: Tensor, nodes: int, count: int | None = None) -> GraphBatch:
    """Dense form of a torch-geometric batch; missing nodes are padded with output. Inverse of `to_ragged`.

    Args:
        types: `v` node types.
        edge_index: `2 x e`.
        batch: `v`, ascending: the graph of each node.
        nodes: N; no graph may have more.
        count: Number of graphs; needed only where the last ones have no node.
    """
    from torch_geometric.utils import to_dense_adj, to_dense_batch

    largest = int(torch.bincount(batch).max()) if len(batch) else 0
    if largest > nodes:
        raise InvalidArchitecture(f"at most {nodes} nodes fit; a graph of the batch has {largest}")
    dense, _ = to_dense_batch(types, batch, fill_value=OUTPUT, max_num_nodes=nodes, batch_size=count)
    adjacency = to_dense_adj(edge_index, batch, max_num_nodes=nodes, batch_size=count)
    return GraphBatch(dense, adjacency > 0)
