"""A distribution over the graphs of a search space that can be moved towards good ones.

AG-Net's graph decoder (`hwnas.nn.decoder`) with feedback: every drawn operation and edge goes into the next step, so
the parts of a sample depend on each other and every graph has a likelihood to train on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hwnas.core.architecture import Architecture
from hwnas.core.graph import ArchGraph
from hwnas.core.protocols import SearchSpace
from hwnas.errors import InvalidArchitecture
from hwnas.nn.decoder import DecoderConfig, GraphDecoder, Rules
from hwnas.nn.graphs import INPUT, GraphBatch, from_dense, to_dense
from hwnas.seeding import stream, torch_generator
from hwnas.spaces.codes import sample

_PROBES = 256  # uniform architectures that tell what graphs look like
_BETAS = (0.5, 0.999)  # the paper's


class GraphSampler:
    """Draws architectures of one space, and learns by weighted maximum likelihood.

    Where all graphs of the space have the same edges (NAS-Bench-201), these are fixed and only operations are drawn,
    and the distribution starts uniform; elsewhere it has to be shown unlabelled architectures first.

    Args:
        space: Its graphs are what is drawn.
        learning_rate: Of Adam.
        batch: Graphs a training step.
    """

    def __init__(self, space: SearchSpace, *, learning_rate: float = 1e-3, batch: int = 32) -> None:
        self.space = space
        self.batch = batch
        graphs = [space.to_graph(architecture) for architecture in _probes(space)]
        ops = {op for graph in graphs for op in graph.ops[1:-1]}
        self.vocabulary = ("output", "input", *sorted(ops - {"output", "input"}))
        config = DecoderConfig(nodes=max(graph.n for graph in graphs), types=len(self.vocabulary))
        self.fixed = len({graph.edges for graph in graphs}) == 1 and len({graph.n for graph in graphs}) == 1
        self.rules = _rules(to_dense(graphs, self.vocabulary, config.nodes), config, self.fixed)
        self._decoder = GraphDecoder(config, generator=torch_generator(stream(0, 0, "decoder")))
        with torch.no_grad():  # the last maps start at zero: every choice is equally likely
            for last in (self._decoder.node_2, self._decoder.edge_2):
                for values in last.parameters():
                    values.zero_()
        self._parameters = list(self._decoder.parameters())
        self._adam = torch.optim.Adam(self._parameters, lr=learning_rate, betas=_BETAS)
        self._steps = 0

    def sample(self, n: int, *, rng: np.random.Generator) -> tuple[list[Architecture], int]:
        """Up to `n` architectures, repetitions included, and how many of the `n` graphs were none of the space."""
        torch_rng = torch_generator(rng)
        z = torch.randn((n, self._decoder.config.latent), generator=torch_rng)
        drawn = self._decoder.sample(z, self.rules, generator=torch_rng)
        found: list[Architecture] = []
        for graph in from_dense(drawn, self.vocabulary):
            try:
                found.append(self.space.from_graph(graph))
            except InvalidArchitecture:
                continue
        return found, n - len(found)

    def tune(
        self,
        architectures: Sequence[Architecture],
        weights: NDArray[np.float64],
        steps: int,
        *,
        uniform: float,
        rng: np.random.Generator,
    ) -> None:
        """Adam steps on the negative log-likelihood of batches drawn with chances `weights`.

        Args:
            architectures: `n`; may be empty where `uniform` is 1.
            weights: `n`, summing to 1: the only place where they act.
            steps: Number of batches.
            uniform: Share of a batch that is drawn uniformly from the space, so that no choice dies out.
            rng: Draws.
        """
        torch_rng = torch_generator(rng)
        free = round(uniform * self.batch) if len(architectures) else self.batch
        for _ in range(steps):
            chosen = sample(self.space, free, rng=rng)
            if free < self.batch:
                rows = rng.choice(len(architectures), size=self.batch - free, p=weights)
                chosen += [architectures[row] for row in rows]
            graphs = self._dense([self.space.to_graph(architecture) for architecture in chosen])
            z = torch.randn((len(chosen), self._decoder.config.latent), generator=torch_rng)
            self._adam.zero_grad()
            loss = -self._decoder.log_likelihood(z, graphs, self.rules).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            self._adam.step()
            self._steps += 1

    @torch.no_grad()
    def log_likelihood(self, architectures: Sequence[Architecture], *, rng: np.random.Generator) -> NDArray[np.float64]:
        """`n` natural logarithms, each for one random latent vector."""
        graphs = self._dense([self.space.to_graph(architecture) for architecture in architectures])
        z = torch.randn((len(graphs), self._decoder.config.latent), generator=torch_generator(rng))
        return np.asarray(self._decoder.log_likelihood(z, graphs, self.rules).numpy(), dtype=np.float64)

    def state_dict(self) -> dict[str, Any]:
        """Weights, Adam's moments and step count."""
        moments = [self._adam.state.get(p, {}) for p in self._parameters]
        pairs = list(zip(self._parameters, moments, strict=True))
        return {
            "steps": self._steps,
            "weights": _flat(self._parameters),
            "first": _flat([m.get("exp_avg", torch.zeros_like(p)) for p, m in pairs]),
            "second": _flat([m.get("exp_avg_sq", torch.zeros_like(p)) for p, m in pairs]),
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: If it was saved for graphs of another size.
        """
        total = sum(p.numel() for p in self._parameters)
        if len(saved["weights"]) != total:
            raise ValueError(f"a decoder with {total} weights was given {len(saved['weights'])}")
        self._steps = int(saved["steps"])
        parts = [_split(saved[name], self._parameters) for name in ("weights", "first", "second")]
        self._adam.state.clear()
        for p, weight, first, second in zip(self._parameters, *parts, strict=True):
            p.copy_(weight)
            if self._steps:
                step = torch.tensor(float(self._steps))
                self._adam.state[p] = {"step": step, "exp_avg": first, "exp_avg_sq": second}

    def _dense(self, graphs: Sequence[ArchGraph]) -> GraphBatch:
        return to_dense(graphs, self.vocabulary, self._decoder.config.nodes)


def _probes(space: SearchSpace) -> list[Architecture]:
    """Uniform architectures, and for each position each choice at least once."""
    start = [0] * len(space.choices)
    single = [
        Architecture(space.name, (*start[:i], value, *start[i + 1 :]))
        for i, count in enumerate(space.choices)
        for value in range(count)
    ]
    return single + sample(space, _PROBES, rng=stream(0, 0, "graphs"))


def _rules(graphs: GraphBatch, config: DecoderConfig, fixed: bool) -> Rules:
    """What the probes' graphs have in common."""
    if not fixed:
        rules = Rules.free(config)
        rules.types[1:, INPUT] = False
        return rules
    admitted = torch.zeros((config.nodes, config.types), dtype=torch.bool)
    positions = torch.arange(config.nodes).expand_as(graphs.types)
    admitted[positions, graphs.types] = True
    return Rules.fixed(graphs.adjacency[0], admitted)


def _flat(tensors: Sequence[Tensor]) -> NDArray[np.float32]:
    return np.asarray(torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).numpy(), dtype=np.float32)


def _split(values: NDArray[np.float32], like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(torch.tensor(values, dtype=torch.float32), [p.numel() for p in like])
    return [part.reshape(p.shape).clone() for part, p in zip(parts, like, strict=True)]
