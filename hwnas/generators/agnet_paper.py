"""AG-Net as its authors describe and run it, without the programming errors of their code.

Lukasik, Jung, Keuper, "Learning Where To Look - Generative NAS is Surprisingly Efficient", ECCV 2022
(arXiv 2203.08734), hardware-aware search; code: github.com/jovitalukasik/AG-Net.

Each round: rank weights w = 1 / (0.01 |D| + r) over the evaluated set D (Tripp et al. 2020, arXiv 2006.09191);
weighted retraining of the graph decoder together with a predictor that reads the decoder's logits; about 500 samples
of which up to 100 new ones are kept; the 16 with the best predicted rank are asked for. Ranks follow Eq. 4 ("joint":
every objective counts) or Eq. 5 ("constrained": objectives without a budget count); whatever breaks a budget comes
after everything that does not.

Reconstruction targets are drawn independently of z, as in the paper, so the decoder learns weighted marginals and the
predictor's input does not describe the architecture that is drawn from it. This is the method to compare with; see
`hwnas.generators.agnet` for the one to use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.objective import Constraint, Objective
from hwnas.core.protocols import SearchSpace
from hwnas.core.state import SearchState
from hwnas.errors import InvalidArchitecture, RunIncompatible
from hwnas.nn.decoder import PAPER, DecoderConfig, GraphDecoder, reconstruction_loss, sample_logits
from hwnas.nn.graphs import GraphBatch, edge_bits, from_dense, to_dense
from hwnas.seeding import torch_generator, torch_seeded
from hwnas.spaces.codes import sample, sample_unseen

Floats = NDArray[np.float64]
Mode = Literal["auto", "joint", "constrained"]

DEVICES = ("edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga")  # order of the one-hot condition
_POOL = 4096  # unlabelled architectures whose marginals the decoder starts from
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """The paper's settings for HW-NAS-Bench, and what its text leaves open.

    Attributes:
        mode: Which ranks count: "joint" (Eq. 4), "constrained" (Eq. 5), or "auto": constrained where there is a
            budget.
        initial: Uniform random architectures before the first round.
        batch: Queries of a round, k in the paper.
        epochs: Passes over the evaluated set in each round.
        train_batch: Architectures in a training step.
        alpha: Share of the predictor in the loss; the rest is reconstruction.
        factor: 0.01 of w = 1 / (0.01 |D| + r).
        learning_rate: Adam's, of decoder and predictor together.
        weight_decay: Adam's.
        candidates: Candidates kept of a round, at random where there are more.
        chunk: Samples of the first draw; draw i has i * `chunk`, until there are more than `candidates`.
        draws: Most draws of a round.
        reach: z is uniform in +-`reach` when sampling (and normal in training).
        pretrain_steps: Steps of the pretraining, 16 latents each.
        pretrain_rate: Adam's learning rate there; falls to 0 along a cosine.
    """

    mode: Mode = "auto"
    initial: int = 16
    batch: int = 16
    epochs: int = 30
    train_batch: int = 16
    alpha: float = 0.95
    factor: float = 0.01
    learning_rate: float = 2e-4
    weight_decay: float = 1e-4
    candidates: int = 100
    chunk: int = 500
    draws: int = 5
    reach: float = 3.0
    pretrain_steps: int = 300
    pretrain_rate: float = 5e-3

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode is one of {', '.join(get_args(Mode))}; got {self.mode!r}")
        for name in ("initial", "batch", "epochs", "train_batch", "candidates", "chunk", "draws", "pretrain_steps"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is at least 1; got {getattr(self, name)}")
        for name in ("factor", "learning_rate", "reach", "pretrain_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is above 0; got {getattr(self, name)}")
        if not 0 <= self.alpha <= 1 or self.weight_decay < 0:
            raise ValueError(f"alpha is 0..1 and weight_decay at least 0; got {self.alpha} and {self.weight_decay}")


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the last round chose from, for benchmarks that compare predictions with the truth.

    Attributes:
        architectures: `c` candidates, the best predicted first.
        losses: `c x m` predicted losses, in the units of the objectives.
    """

    architectures: tuple[Architecture, ...]
    losses: Floats


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the predictor predicts: every objective, then every budget's metric that is no objective.

    Attributes:
        columns: `t` metrics with device and direction.
        objectives: m, the leading columns.
    """

    columns: tuple[Objective, ...]
    objectives: int

    @classmethod
    def of(cls, state: SearchState) -> Outputs:
        known = {(o.metric, o.device) for o in state.objectives}
        bounded = {(c.metric, c.device): Objective(c.metric, c.device, c.goal) for c in state.constraints}
        extra = tuple(column for place, column in bounded.items() if place not in known)
        return cls((*state.objectives, *extra), len(state.objectives))

    @property
    def condition(self) -> NDArray[np.float32]:
        """6: one-hot of the target device; zeros for a device that the paper does not know."""
        used = {column.device for column in self.columns}
        return np.array([name in used for name in DEVICES], dtype=np.float32)

    def losses(self, state: SearchState) -> Floats:
        """`n x t` losses; nan where something was not measured."""
        table = np.full((len(state.archive), len(self.columns)), np.nan)
        table[:, : self.objectives] = state.losses
        for j, column in list(enumerate(self.columns))[self.objectives :]:
            rows = [evaluation.find(column.metric, column.device) for evaluation in state.archive]
            table[:, j] = [np.nan if row is None else column.loss(row.value) for row in rows]
        return table

    def targets(self, losses: Floats) -> Floats:
        """What the network is fitted to: an error in % as accuracy in [0, 1], everything else as it is."""
        return np.where(self._is_error, 1.0 - losses / 100.0, losses)

    def to_losses(self, targets: Floats) -> Floats:
        """The inverse of `targets`."""
        return np.where(self._is_error, 100.0 * (1.0 - targets), targets)

    def broken(self, losses: Floats, constraints: Sequence[Constraint]) -> NDArray[np.bool_]:
        """`n`: whether a row of `n x t` losses breaks a budget."""
        place = {(column.metric, column.device): j for j, column in enumerate(self.columns)}
        result = np.zeros(len(losses), dtype=np.bool_)
        for constraint in constraints:
            j = place[constraint.metric, constraint.device]
            result |= [constraint.violation(self.columns[j].value(float(x))) > 0 for x in losses[:, j]]
        return result

    @property
    def _is_error(self) -> NDArray[np.bool_]:
        return np.array([c.metric.endswith("_error_pct") and c.goal == "min" for c in self.columns])


def ranked_columns(state: SearchState, mode: Mode) -> list[int]:
    """Objectives whose ranks are summed: all (Eq. 4), or those without a budget (Eq. 5; all where each has one)."""
    everything = list(range(len(state.objectives)))
    if mode == "joint" or not state.constraints:
        return everything
    bounded = {(c.metric, c.device) for c in state.constraints}
    free = [j for j in everything if (state.objectives[j].metric, state.objectives[j].device) not in bounded]
    return free or everything


def places(state: SearchState, losses: Floats, broken: Sequence[NDArray[np.bool_]], mode: Mode) -> NDArray[np.int64]:
    """`n` places, 0 the best, by the objectives that `ranked_columns` names; with several fronts the best on any
    device.

    Args:
        state: What is wanted.
        losses: `n x t` measured or predicted losses; the leading columns are all objectives.
        broken: For each of `state.goals`: `n`, whether a row breaks a budget.
        mode: See `ranked_columns`.
    """
    found = []
    for goal, over in zip(state.goals, broken, strict=True):
        columns = [state.objectives.index(goal.objectives[j]) for j in ranked_columns(goal, mode)]
        found.append(positions(losses[:, columns], over))
    return np.asarray(np.min(found, axis=0), dtype=np.int64)


def positions(losses: Floats, broken: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`n` places, 0 the best: by the sum of ranks over the columns, all that break a budget behind all others.

    The paper multiplies the rank sum of these by 1000; as only the order counts, this is the same, and stays so for
    any number of rows. Its candidate ranks begin at 0, so that the best predicted one escapes the factor: not here.
    Equal losses have equal ranks.

    Args:
        losses: `n x m`, finite.
        broken: `n`.
    """
    ranks = sum(1 + np.searchsorted(np.sort(column), column) for column in losses.T)
    place = np.empty(len(losses), dtype=np.int64)
    place[np.lexsort((ranks, broken))] = np.arange(len(losses))
    return place


def rank_weights(place: NDArray[np.int64], factor: float = 0.01) -> Floats:
    """w = 1 / (factor * |D| + r), not normalised, with r = 0 for the best."""
    return np.asarray(1.0 / (factor * len(place) + place), dtype=np.float64)


def clipped(term: Tensor) -> Tensor:
    """t / max(1, stop_gradient(t)): a term above 1 counts 1 and keeps its relative gradient."""
    return term / term.detach().clamp(min=1.0)


class JointPredictor(nn.Module):
    """Accuracy and latency from a decoder's logits and the device: one network, an output for each.

    Four hidden layers with ReLU, as wide as the input; the device enters again after each of them.

    Args:
        logits: Width of the logits, NK + N(N-1)/2.
        outputs: Number of predicted metrics.
        condition: Width of the device's one-hot.
    """

    def __init__(self, logits: int, outputs: int, condition: int = len(DEVICES)) -> None:
        super().__init__()
        width = logits + condition
        self.hidden = nn.ModuleList(nn.Linear(width if i == 0 else width + condition, width) for i in range(4))
        self.out = nn.Linear(width + condition, outputs)

    def forward(self, logits: Tensor, condition: Tensor) -> Tensor:
        """`B x outputs` from `B x logits` and the device's one-hot."""
        repeated = condition.expand(len(logits), -1)
        x = torch.cat((logits, repeated), dim=1)
        for layer in self.hidden:
            x = torch.cat((layer(x).relu(), repeated), dim=1)
        predicted: Tensor = self.out(x)
        return predicted


@dataclass(frozen=True, slots=True)
class _Examples:
    """The measured part of the archive: `n` graphs, `n x t` targets, `n` weights."""

    graphs: GraphBatch
    targets: Tensor
    weights: Tensor
    chance: Floats


class AgNetPaper:
    """The generator; see the module's docstring.

    Args:
        space: Where to search. Its graphs need a fixed largest size; operations stand on nodes.
        settings: The paper's by default.

    Attributes:
        vocabulary: Node types, "output" and "input" first.
        config: Sizes of the decoder.
        drawn: What the last `propose` sampled, dropped, and filled up with uniform draws.
        last_candidates: What the last `propose` chose from; None before the first round. Never read by the search.
    """

    name = "agnet-paper"

    def __init__(self, space: SearchSpace, settings: Settings | None = None) -> None:
        self.space = space
        self.settings = settings or Settings()
        self.vocabulary, nodes = _shape(space)
        known = PAPER.get(space.name)
        fits = known is not None and (known.nodes, known.types) == (nodes, len(self.vocabulary))
        self.config = known if known and fits else DecoderConfig(nodes, len(self.vocabulary))
        self.drawn = Ledger()
        self.last_candidates: Candidates | None = None
        self._decoder: GraphDecoder | None = None
        self._predictor: JointPredictor | None = None
        self._adam: torch.optim.Adam | None = None

    @property
    def parameter_count(self) -> int:
        """Parameters of the decoder: 42,474 on NAS-Bench-201."""
        return 0 if self._decoder is None else sum(p.numel() for p in self._decoder.parameters())

    # -- learning --------------------------------------------------------------------------------------------

    def pretrain(self, space: SearchSpace, *, budget: float, rng: np.random.Generator) -> Ledger:
        """Fits the decoder to uniform unlabelled architectures: the optimum for every z are their marginals.

        The expectation of the paper's loss over targets that are drawn independently of z is the cross-entropy to
        their marginals. Its minimum is reached with these as targets in 300 steps, where single draws need millions
        of instances; on NAS-Bench-201 it is 6/8 ln 5 = 1.2071, the value of the published weights.

        Args:
            space: The generator's own space.
            budget: Not read: the number of steps is fixed so that results do not depend on a clock (1.6 CPU
                seconds on NAS-Bench-201).
            rng: Draws weights, architectures and latents.

        Returns:
            An empty ledger: no label is seen.
        """
        del budget
        generator = torch_generator(rng)
        self._decoder = GraphDecoder(self.config, generator=generator)
        self._predictor = self._adam = None
        graphs = self._dense(sample(space, _POOL, rng=rng))
        types = F.one_hot(graphs.types, self.config.types).float().mean(0)
        edges = edge_bits(graphs.adjacency).float().mean(0)
        steps, rate = self.settings.pretrain_steps, self.settings.pretrain_rate
        adam = torch.optim.Adam(self._decoder.parameters(), lr=rate, betas=(0.5, 0.999), fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            z = torch.randn((16, self.config.latent), generator=generator)
            node_logits, edge_logits = self._decoder(z)
            loss = -(types * node_logits.log_softmax(2)).sum(2).mean()
            loss = loss + F.binary_cross_entropy_with_logits(edge_logits, edges.expand_as(edge_logits))
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
        return Ledger()

    def update(self, state: SearchState, *, rng: np.random.Generator) -> None:
        """Weighted retraining on everything measured; nothing before `initial` evaluations, nor after the last."""
        if self._decoder is None:
            self.pretrain(self.space, budget=60.0, rng=rng)
        if len(state.archive) < self.settings.initial or state.remaining == 0:
            return
        outputs = Outputs.of(state)
        examples = self._examples(state, outputs)
        if examples is None:
            return
        self._ensure_predictor(len(outputs.columns), rng)
        self._train(examples, torch.from_numpy(outputs.condition), rng)

    def _examples(self, state: SearchState, outputs: Outputs) -> _Examples | None:
        """None where nothing was measured completely."""
        losses = outputs.losses(state)
        rows = np.flatnonzero(~np.isnan(losses).any(axis=1))
        if not len(rows):
            return None
        broken = [goal.violations[rows] > 0 for goal in state.goals]
        weights = rank_weights(places(state, losses[rows], broken, self.settings.mode), self.settings.factor)
        return _Examples(
            self._dense([state.architectures[i] for i in rows]),
            torch.from_numpy(outputs.targets(losses[rows])).float(),
            torch.from_numpy(weights).float(),
            weights / weights.sum(),
        )

    def _ensure_predictor(self, outputs: int, rng: np.random.Generator) -> None:
        """The predictor and the optimiser of both networks, made when the number of outputs is known."""
        if self._predictor is None or self._predictor.out.out_features != outputs:
            with torch_seeded(rng):
                self._build(outputs)

    def _build(self, outputs: int) -> None:
        assert self._decoder is not None
        config = self.config
        self._predictor = JointPredictor(config.nodes * config.types + config.edges, outputs)
        self._adam = torch.optim.Adam(
            [*self._decoder.parameters(), *self._predictor.parameters()],
            lr=self.settings.learning_rate,
            betas=(0.5, 0.999),
            weight_decay=self.settings.weight_decay,
            fused=True,
        )

    def _train(self, examples: _Examples, condition: Tensor, rng: np.random.Generator) -> None:
        """`epochs` times as many draws with replacement as there are examples, in batches, a new z for each."""
        assert self._decoder is not None
        assert self._predictor is not None
        assert self._adam is not None
        generator, n = torch_generator(rng), len(examples.chance)
        for _ in range(self.settings.epochs):
            drawn = torch.from_numpy(rng.choice(n, size=n, p=examples.chance))
            for rows in torch.split(drawn, self.settings.train_batch):
                z = torch.randn((len(rows), self.config.latent), generator=generator)
                node_logits, edge_logits = self._decoder(z)
                predicted = self._predictor(_flat(node_logits, edge_logits), condition)
                loss = training_loss(
                    reconstruction_loss(node_logits, edge_logits, examples.graphs.select(rows)),
                    predicted,
                    examples.targets[rows],
                    examples.weights[rows],
                    self.settings.alpha,
                )
                self._adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self._adam.step()

    # -- proposing -------------------------------------------------------------------------------------------

    def batch_size(self, state: SearchState) -> int:
        return max(self.settings.initial - len(state.archive), 0) or self.settings.batch

    def propose(self, state: SearchState, n: int, *, rng: np.random.Generator) -> Sequence[Architecture]:
        """Uniform before the first round, then the best predicted of the sampled candidates."""
        self.drawn = Ledger()
        if len(state.archive) < self.settings.initial or self._decoder is None:
            first = sample_unseen(self.space, n, state.seen, rng=rng)
            self.drawn = Ledger(generated=len(first))
            return first
        ordered = self._ordered(state, *self._candidates(state, rng))
        chosen = ordered[:n]
        # the paper's code stops with an error where too few samples are new and valid
        rest = sample_unseen(self.space, n - len(chosen), state.seen.union(chosen), rng=rng)
        self.drawn = replace(self.drawn, filled=len(rest))
        return (*chosen, *rest)

    @torch.no_grad()
    def _candidates(self, state: SearchState, rng: np.random.Generator) -> tuple[list[Architecture], Tensor]:
        """Valid unseen distinct samples, and the logits that each was drawn from (`c x logits`)."""
        assert self._decoder is not None
        settings, generator = self.settings, torch_generator(rng)
        found: dict[Architecture, Tensor] = {}
        generated = 0
        for i in range(1, settings.draws + 1):
            z = torch.rand((i * settings.chunk, self.config.latent), generator=generator)
            node_logits, edge_logits = self._decoder((2 * z - 1) * settings.reach)
            graphs = sample_logits(node_logits, edge_logits, generator=generator)
            logits = _flat(node_logits, edge_logits)
            generated += len(z)
            for row, architecture in enumerate(self._decode(graphs)):
                if architecture is not None and architecture not in state.seen and architecture not in found:
                    found[architecture] = logits[row]
            if len(found) > settings.candidates:
                break
        self.drawn = Ledger(generated=generated, rejected=generated - len(found))
        architectures = list(found)
        if len(found) > settings.candidates:
            kept = rng.choice(len(found), size=settings.candidates, replace=False)
            architectures = [architectures[i] for i in kept]
        width = self.config.nodes * self.config.types + self.config.edges
        rows = [found[architecture] for architecture in architectures]
        return architectures, torch.stack(rows) if rows else torch.zeros((0, width))

    @torch.no_grad()
    def _ordered(self, state: SearchState, architectures: list[Architecture], logits: Tensor) -> list[Architecture]:
        """Best predicted first; as they come where nothing was learned yet."""
        outputs = Outputs.of(state)
        if self._predictor is None or not architectures:
            return architectures
        predicted = self._predictor(logits, torch.from_numpy(outputs.condition)).double().numpy()
        losses = outputs.to_losses(predicted)
        broken = [outputs.broken(losses, goal.constraints) for goal in state.goals]
        order = np.argsort(places(state, losses, broken, self.settings.mode))
        ordered = [architectures[i] for i in order]
        self.last_candidates = Candidates(tuple(ordered), losses[order, : outputs.objectives])
        return ordered

    # -- graphs ----------------------------------------------------------------------------------------------

    def _dense(self, architectures: Sequence[Architecture]) -> GraphBatch:
        return to_dense([self.space.to_graph(a) for a in architectures], self.vocabulary, self.config.nodes)

    def _decode(self, graphs: GraphBatch) -> list[Architecture | None]:
        """None for graphs outside the space."""
        decoded: list[Architecture | None] = []
        for graph in from_dense(graphs, self.vocabulary):
            try:
                decoded.append(self.space.from_graph(graph))
            except InvalidArchitecture:
                decoded.append(None)
        return decoded

    # -- saving ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "decoder": _arrays(self._decoder),
            "predictor": _arrays(self._predictor),
            "adam": None if self._adam is None else _moments(self._adam),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken.

        Raises:
            RunIncompatible: If the weights are of another version or of another space.
        """
        if saved.get("format") != _FORMAT:
            raise RunIncompatible(f"weights of {self.name} have format {_FORMAT}; these have {saved.get('format')!r}")
        self._decoder = self._predictor = self._adam = None
        try:
            if saved["decoder"] is not None:
                self._decoder = GraphDecoder(self.config, generator=torch.Generator())
                self._decoder.load_state_dict(_tensors(saved["decoder"]))
            if saved["predictor"] is not None:
                with torch_seeded(np.random.default_rng(0)):  # values are replaced at once
                    self._build(len(saved["predictor"]["out.bias"]))
                assert self._predictor is not None
                assert self._adam is not None
                self._predictor.load_state_dict(_tensors(saved["predictor"]))
                _restore(self._adam, saved["adam"])
        except (KeyError, RuntimeError, AssertionError) as error:
            raise RunIncompatible(f"weights do not fit {self.name} on space {self.space.name!r}: {error}") from error


def training_loss(reconstruction: Tensor, predicted: Tensor, targets: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """mean( w [ (1 - alpha) rec' + alpha mean_j (predicted_j - target_j)^2' ] ), where t' is `clipped`.

    With two outputs the inner mean is the paper's 0.5 lat' + 0.5 acc'.

    Args:
        reconstruction: `B`.
        predicted: `B x t`.
        targets: `B x t`: accuracy in [0, 1], latency in ms.
        weights: `B`; they also decide how often an example is drawn, as in the paper's code.
        alpha: 0.95 in the paper.
    """
    regression = clipped((predicted - targets).square()).mean(dim=1)
    return (weights * ((1.0 - alpha) * clipped(reconstruction) + alpha * regression)).mean()


def _shape(space: SearchSpace) -> tuple[tuple[str, ...], int]:
    """Node types and the largest number of nodes of a space's graphs, found by trying every choice at every position
    and 256 random codes."""
    base = [0] * len(space.choices)
    tried = [
        Architecture(space.name, (*base[:i], value, *base[i + 1 :]))
        for i, count in enumerate(space.choices)
        for value in range(count)
    ]
    tried += sample(space, 256, rng=np.random.default_rng(0))
    graphs = [space.to_graph(architecture) for architecture in tried]
    inner = dict.fromkeys(op for graph in graphs for op in graph.ops[1:-1])
    return ("output", "input", *(op for op in inner if op not in ("output", "input"))), max(g.n for g in graphs)


def _flat(node_logits: Tensor, edge_logits: Tensor) -> Tensor:
    return torch.cat((node_logits.flatten(1), edge_logits), dim=1)


def _arrays(module: nn.Module | None) -> dict[str, Any] | None:
    return None if module is None else {key: value.numpy().copy() for key, value in module.state_dict().items()}


def _tensors(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.array(value)) for key, value in saved.items()}


def _moments(adam: torch.optim.Adam) -> list[dict[str, Any]]:
    """Adam's state of each parameter, in order; empty where it has not stepped yet."""
    return [
        {key: value.numpy().copy() for key, value in adam.state.get(parameter, {}).items()}
        for parameter in adam.param_groups[0]["params"]
    ]


def _restore(adam: torch.optim.Adam, saved: Sequence[Mapping[str, Any]]) -> None:
    for parameter, moments in zip(adam.param_groups[0]["params"], saved, strict=True):
        if moments:
            adam.state[parameter] = _tensors(moments)
