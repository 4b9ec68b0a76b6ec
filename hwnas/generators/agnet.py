"""The default method: AG-Net's generator with a surrogate that sees what it describes.

Lukasik, Jung, Keuper, "Learning Where To Look - Generative NAS is Surprisingly Efficient", ECCV 2022 (arXiv
2203.08734) sample graphs from a decoder that is retrained on everything measured, weighted by rank, and query those
that a surrogate likes. Here the decoder's samples depend on each other, the surrogate (a Gaussian process for each
loss) is trained on the sampled architectures themselves, and what to measure next is decided by expected
hypervolume improvement within the budgets. See docs/methods/agnet.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from hwnas.core import pareto, target
from hwnas.core.architecture import Architecture
from hwnas.core.ledger import Ledger
from hwnas.core.measurement import Source
from hwnas.core.metrics import FAMILIES, METRICS
from hwnas.core.objective import Constraint, Objective
from hwnas.core.protocols import SearchSpace
from hwnas.core.state import SearchState
from hwnas.core.stopping import Outlook
from hwnas.generators.acquisition import chance_below, expected_excess, expected_hypervolume_improvement
from hwnas.generators.foresight import CLIMBERS, Prospect, foresee
from hwnas.generators.graph_sampler import GraphSampler
from hwnas.predictors.compression import Compression
from hwnas.predictors.costs import KnownCosts
from hwnas.predictors.encoding import BLOCKS, Encoder
from hwnas.predictors.gp import GaussianProcess, Posterior
from hwnas.spaces.codes import sample_unseen

Floats = NDArray[np.float64]

_FEWEST = 4  # successful evaluations before anything is predicted
_MANY = 3  # objectives from which on few points of a front are better than the medians in all of them
_MEDIAN, _NEARLY_ALL = 0.5, 0.9
_WIDER = (0.75, 0.9, 1.0)  # quantiles for the reference point where objectives contradict each other too much
_INSIDE = 0.02  # share of uniform samples that have to be better than the reference point
_CERTAIN = 1e-3  # of a standard deviation is left where the surrogate's means are believed
_GOLDEN = 0.6180339887498949
_LIMITS = np.linspace(0.02, 0.98, 17)  # quantiles of a cost among which the niche with most to gain is looked for
_EARLY = 8  # steps in which hyper-parameters are fitted every time


@dataclass(frozen=True)
class Settings:
    """Settings of `AgNet`.

    Attributes:
        initial: Uniform evaluations before the first prediction.
        batch: Evaluations in each later step.
        surrogate: Whether a surrogate chooses; without it the generator's own samples are evaluated as they come.
        paired: Whether the surrogate is trained on the architectures that it describes. Without it losses are handed
            to it in another order, as the paper's targets are drawn independently of what they are paired with: it
            then knows how losses are distributed, and no more.
        generator: Whether the pool has samples of the decoder; without it their share is drawn uniformly.
        acquisition: "ehvi" looks for improvement in expectation, "mean" believes the surrogate's means, "rank" orders
            the means as measurements are ordered (violation, Pareto rank, crowding), whatever was found before.
        generated: Decoder samples in the pool.
        uniform: Uniform samples in the pool.
        neighbours: At most so many one-step neighbours of the front in the pool.
        reference: Quantile of the predictions for uniform samples that gives the reference point, in each objective:
            what is worse in any of them is not looked for. 1 asks for the whole front. None for 0.5, from three
            objectives on 0.9: less of a front is better than the medians in all of them, the more there are.
        exploit: With budgets: share of a batch that is chosen for the first objective alone.
        niches: Without budgets, from two objectives on: share of evaluations that are chosen for the first objective
            alone below a limit of another one. So every part of the front is looked for, also beyond the reference
            point.
        spread: Share of the niches whose limits are spread evenly; the others are where most is expected to be gained.
        blocks: Blocks of the encoding with a kernel each: "code", "live", "shape".
        devices: Whether predictions of a device's costs start from the shipped surrogates of other devices.
        compress: Errors worse than this quantile of those evaluated are compressed before anything is fitted to them;
            1 compresses none.
        refit: Steps between fits of the surrogate's hyper-parameters (every step at first).
        iterations: L-BFGS steps of a fit.
        ranking: Weight of the surrogate's ranking loss.
        tune_every: Steps between retrainings of the decoder.
        tune_steps: Batches of a retraining.
        learning_rate: Of the decoder.
        floor: Share of uniform architectures in the decoder's batches.
        pretrain_steps: Batches of unlabelled architectures before the search, where edges are free.
    """

    initial: int = 8
    batch: int = 4
    surrogate: bool = True
    paired: bool = True
    generator: bool = True
    acquisition: Literal["ehvi", "mean", "rank"] = "ehvi"
    generated: int = 500
    uniform: int = 500
    neighbours: int = 800
    reference: float | None = None
    exploit: float = 0.5
    niches: float = 0.25
    spread: float = 0.5
    blocks: tuple[str, ...] = ("code", "shape")
    devices: bool = True
    compress: float = 0.75
    refit: int = 3
    iterations: int = 8
    ranking: float = 0.0
    tune_every: int = 2
    tune_steps: int = 10
    learning_rate: float = 1e-3
    floor: float = 0.2
    pretrain_steps: int = 150

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))  # a list where it comes from TOML or JSON
        least = {"initial": 2, "batch": 1, "generated": 1, "uniform": 1, "refit": 1, "iterations": 1, "tune_every": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is at least {smallest}, got {getattr(self, name)}")
        for name in ("neighbours", "tune_steps", "pretrain_steps", "ranking"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is not negative, got {getattr(self, name)}")
        for name in ("reference", "exploit", "niches", "spread", "floor", "compress"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is in 0..1, got {getattr(self, name)}")
        if self.acquisition not in ("ehvi", "mean", "rank"):
            raise ValueError(f"acquisition is 'ehvi', 'mean' or 'rank', got {self.acquisition!r}")
        if not self.blocks or any(block not in BLOCKS for block in self.blocks):
            raise ValueError(f"blocks are some of {BLOCKS}, got {self.blocks}")


class AgNet:
    """Decoder, surrogate and acquisition; see the module.

    Args:
        space: Where to search.
        settings: How.
    """

    name = "agnet"

    def __init__(self, space: SearchSpace, settings: Settings | None = None) -> None:
        self.space = space
        self.settings = settings or Settings()
        self.drawn = Ledger()
        self._lent = False
        self._labels: int | None = None  # of known costs; None until they are lent, 0 once the ledger has them
        self._networks: dict[Architecture, Architecture] = {}  # canonical forms, which take time
        self._surrogate = GaussianProcess(
            Encoder(space),
            blocks=self.settings.blocks,
            iterations=self.settings.iterations,
            ranking=self.settings.ranking,
        )

    @cached_property
    def _sampler(self) -> GraphSampler:
        return GraphSampler(self.space, learning_rate=self.settings.learning_rate)

    def pretrain(self, space: SearchSpace, *, budget: float, rng: np.random.Generator) -> Ledger:
        """Show the decoder uniform architectures, where it does not start as a uniform distribution. No labels."""
        del space, budget
        if self.settings.generator and not self._sampler.fixed:
            self._sampler.tune([], np.zeros(0), self.settings.pretrain_steps, uniform=1.0, rng=rng)
        return Ledger()

    def batch_size(self, state: SearchState) -> int:
        return max(self.settings.batch, self.settings.initial - len(state.archive))

    def propose(self, state: SearchState, n: int, *, rng: np.random.Generator) -> Sequence[Architecture]:
        """The best of a pool of decoder samples, neighbours of the front and uniform samples."""
        if not self._ready(state):
            chosen = sample_unseen(self.space, n, state.seen, rng=rng)
            self.drawn = Ledger(generated=len(chosen))
            return chosen
        uniform, others, drawn = self._pool(state, rng, decoded=self.settings.generator)
        self.drawn = drawn.plus(Ledger(pretraining_labels=self._labels or 0))
        if self._labels:
            self._labels = 0
        if not self.settings.surrogate:
            return [*others, *uniform][:n]
        pool = [*uniform, *others]
        if len(pool) <= n:
            return pool
        goal = self._goal(state)
        self._surrogate.condition(state.architectures, self._taught(goal.losses, rng))
        posterior = self._surrogate.posterior(pool)
        choosers = [_Chooser(self.settings, own, posterior, goal, len(uniform)) for own in self._goals(state, goal)]
        return [pool[i] for i in _choose(choosers, posterior, n, len(state.archive))]

    def update(self, state: SearchState, *, rng: np.random.Generator) -> None:
        """Refit the surrogate and retrain the decoder, each as often as the settings say."""
        if not self._ready(state):
            return
        asked = self.settings
        if asked.surrogate and (state.step <= _EARLY or state.step % asked.refit == 0):
            self._surrogate.fit(state.architectures, self._taught(self._goal(state).losses, rng), rng=rng)
        if asked.generator and state.step % asked.tune_every == 0:
            self._sampler.tune(
                state.architectures, target.weights(state), asked.tune_steps, uniform=asked.floor, rng=rng
            )

    @property
    def foresees(self) -> bool:
        """Whether it can tell what it expects: only a surrogate of what it describes can."""
        return self.settings.surrogate and self.settings.paired

    def outlook(self, state: SearchState, *, rng: np.random.Generator) -> Outlook | None:
        """What the surrogate expects beyond the front, over uniform samples and neighbours of the front; None until
        something feasible is better than the reference point in all objectives. Of several fronts what it expects of
        each."""
        if not self._ready(state) or not (state.violations == 0).any():
            return None
        goal = self._goal(state)
        self._surrogate.condition(state.architectures, goal.losses)
        uniform, near, _ = self._pool(state, rng, decoded=False)
        if not uniform:  # everything was evaluated
            return None
        pool = [*uniform, *near]
        posterior = self._surrogate.posterior(pool)
        found: list[Outlook | None] = []
        for told, own in zip(state.goals, self._goals(state, goal), strict=True):
            if not len(own.front):
                found.append(None)
                continue
            chooser = _Chooser(self.settings, own, posterior, goal, len(uniform))
            prospect = own.prospect(told, chooser.reference)
            best = dict.fromkeys(pool[row] for row in prospect.best(posterior.about(chooser.columns)))
            further = dict.fromkeys(
                a for a in self._one_step(list(best)[:CLIMBERS]) if a not in state.seen and a not in best
            )
            if _measured(state):
                best, further = self._new_networks(state, best, further)
            predicted = self._surrogate.posterior([*best, *further]).about(chooser.columns)
            found.append(foresee(prospect, predicted, rng=rng))
        return Outlook.of(dict(zip(state.by_device, found, strict=True))) if state.by_device else found[0]

    def state_dict(self) -> dict[str, Any]:
        sampler = self._sampler.state_dict() if self.settings.generator else None
        return {"surrogate": self._surrogate.hyper_parameters(), "sampler": sampler, "labels": self._labels}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self._surrogate.set_hyper_parameters(saved["surrogate"])
        self._labels = saved.get("labels")
        if saved["sampler"] is not None:
            self._sampler.load_state_dict(saved["sampler"])

    def _goal(self, state: SearchState) -> _Goal:
        """What is wanted; the surrogate is told of other devices as soon as it is clear which ones are asked for."""
        goal = _Goal.of(state, self.settings.compress)
        if self.settings.devices and not self._lent and goal.costs:
            contexts = [row.context for evaluation in state.archive for row in evaluation.measurements]
            targets = {context.device for context in contexts}
            dataset = next((c.dataset for c in contexts if c.device is not None and c.dataset is not None), None)
            if dataset in self.space.datasets:
                known = KnownCosts.of(self.space, dataset, without=targets)
                self._surrogate.lend(known, goal.costs)
                self._labels = known.labels if self._labels is None else self._labels
            self._lent = True
        return goal

    def _goals(self, state: SearchState, goal: _Goal) -> list[_Goal]:
        """What is wanted for each front; `goal` itself where there is one."""
        compress = self.settings.compress
        return [_Goal.of(own, compress) for own in state.by_device.values()] or [goal]

    def _taught(self, losses: Floats, rng: np.random.Generator) -> Floats:
        """The losses that the surrogate is told the architectures have: theirs, where it is paired."""
        return losses if self.settings.paired else np.asarray(rng.permutation(losses))

    def _ready(self, state: SearchState) -> bool:
        """Whether there is enough to learn from."""
        if len(state.archive) < self.settings.initial:
            return False
        return bool(np.isfinite(_Goal.of(state, 1.0).losses).all(axis=1).sum() >= _FEWEST)

    def _pool(
        self, state: SearchState, rng: np.random.Generator, *, decoded: bool
    ) -> tuple[list[Architecture], list[Architecture], Ledger]:
        """Unseen and distinct: uniform ones, then samples of the decoder and neighbours of the front; and how many were
        drawn for them. Without samples of the decoder their share is drawn uniformly."""
        asked = self.settings
        extra = 0 if decoded else asked.generated
        uniform = dict.fromkeys(sample_unseen(self.space, asked.uniform + extra, state.seen, rng=rng))
        generated, invalid = self._sampler.sample(asked.generated, rng=rng) if decoded else ([], 0)
        near = self._neighbours(state, rng) if asked.surrogate else []
        others = dict.fromkeys(a for a in (*generated, *near) if a not in state.seen and a not in uniform)
        total = len(uniform) + len(generated) + invalid + len(near)
        if _measured(state):
            uniform, others = self._new_networks(state, uniform, others)
        return list(uniform), list(others), Ledger(generated=total, rejected=total - len(uniform) - len(others))

    def _new_networks(
        self, state: SearchState, *pools: Mapping[Architecture, None]
    ) -> tuple[dict[Architecture, None], ...]:
        """Pools without architectures that are the network of another one, there or in the archive: where networks are
        run, it would be run for nothing. A table has numbers of its own for each. As they are if nothing is left."""
        taken = {self._network(architecture) for architecture in state.architectures}
        kept: list[dict[Architecture, None]] = []
        for pool in pools:
            kept.append({})
            for architecture in pool:
                network = self._network(architecture)
                if network not in taken:
                    taken.add(network)
                    kept[-1][architecture] = None
        return tuple(kept) if any(kept) else tuple(dict(pool) for pool in pools)

    def _network(self, architecture: Architecture) -> Architecture:
        if architecture not in self._networks:
            self._networks[architecture] = self.space.canonical(architecture)
        return self._networks[architecture]

    def _neighbours(self, state: SearchState, rng: np.random.Generator) -> list[Architecture]:
        """Architectures one choice away from the front; where nothing is feasible, from the best there are."""
        rows = state.front_indices if len(state.front_indices) else state.order[: self.settings.batch]
        near = self._one_step([state.architectures[row] for row in rows])
        if len(near) <= self.settings.neighbours:
            return list(near)
        every = list(near)
        return [every[i] for i in rng.choice(len(every), size=self.settings.neighbours, replace=False)]

    def _one_step(self, architectures: Iterable[Architecture]) -> dict[Architecture, None]:
        """All that are one choice away from one of these."""
        return dict.fromkeys(
            Architecture(self.space.name, (*code[:i], value, *code[i + 1 :]))
            for code in (architecture.code for architecture in architectures)
            for i, count in enumerate(self.space.choices)
            for value in range(count)
            if value != code[i]
        )


@dataclass(frozen=True)
class _Goal:
    """Objectives and budgets as columns to minimise, errors compressed.

    Attributes:
        losses: `n x (m + c)`: objectives, then metrics that have a budget but are no objective.
        keys: Metric, device and direction of each column.
        objectives: m.
        bounds: (column, largest loss that is admitted) for each budget.
        front: `k x m` losses of feasible evaluations.
        costs: Columns that belong to a device.
        shown: How each column was compressed.
    """

    losses: Floats
    keys: tuple[tuple[str, str | None, str], ...]
    objectives: int
    bounds: tuple[tuple[int, float], ...]
    front: Floats
    costs: tuple[int, ...]
    shown: tuple[Compression, ...] = ()

    @classmethod
    def of(cls, state: SearchState, compress: float) -> _Goal:
        columns = list(state.losses.T)
        keys = [(o.metric, o.device, o.goal) for o in state.objectives]
        own = len(keys)
        limits: list[tuple[int, float]] = []
        for constraint in state.constraints:
            key = (constraint.metric, constraint.device, constraint.goal)
            as_loss = Objective(*key)
            if key not in keys:
                keys.append(key)
                columns.append(_values(state, constraint, as_loss))
            limits.append((keys.index(key), as_loss.loss(constraint.bound)))
        metrics = [metric for metric, _, _ in keys]
        shown = [
            Compression.of(column, compress if metric in FAMILIES["error"] else 1.0)
            for metric, column in zip(metrics, columns, strict=True)
        ]
        losses = np.stack([show(column) for show, column in zip(shown, columns, strict=True)], axis=1)
        return cls(
            losses,
            tuple(keys),
            own,
            tuple((column, float(shown[column](np.array(limit)))) for column, limit in limits),
            losses[state.violations == 0, :own],
            tuple(j for j, metric in enumerate(metrics) if METRICS[metric].per_device),
            tuple(shown),
        )

    def prospect(self, state: SearchState, reference: Floats) -> Prospect:
        """What lies beyond the front, up to a reference point in units of `losses`."""
        return Prospect(self.front, reference, self.bounds, self.shown, _floors(state))


def _measured(state: SearchState) -> bool:
    """Whether costs come from running networks."""
    run = (Source.MEASURED, Source.PREDICTED)
    rows = (row for evaluation in state.archive for row in evaluation.measurements)
    return any(row.context.device is not None and row.context.source in run for row in rows)


def _floors(state: SearchState) -> Floats:
    """`m`: differences of a loss that its measurements do not resolve; 0 where they have no interval."""
    wide = np.where(state.half_widths > 0, state.half_widths, np.nan)
    measured = np.isfinite(wide).any(axis=0)
    found = np.zeros(wide.shape[1])
    found[measured] = np.sqrt(2) * np.nanmedian(wide[:, measured], axis=0)  # of two values with such an interval
    return found


def _values(state: SearchState, constraint: Constraint, as_loss: Objective) -> Floats:
    found = [evaluation.find(constraint.metric, constraint.device) for evaluation in state.archive]
    return np.array([np.nan if row is None else as_loss.loss(row.value) for row in found])


def _choose(choosers: Sequence[_Chooser], posterior: Posterior, n: int, evaluated: int) -> list[int]:
    """A batch from a pool, one by one, best first; what was chosen is believed to have its predicted losses.

    Several fronts take turns, and go on with them in the next batch, so that each gets its share whatever the batch is.

    Args:
        choosers: One for each front.
        posterior: Predictions for the pool.
        n: How many to choose.
        evaluated: How many architectures were evaluated before: says whose turn it is.

    Returns:
        Rows of the pool.
    """
    if choosers[0].by_rank:
        places = np.argsort([chooser.ranked() for chooser in choosers], axis=1)
        return [int(row) for row in np.argsort(places.min(axis=0), kind="stable")[:n]]
    open_ = np.ones(len(posterior.mean), dtype=np.bool_)
    chosen: list[int] = []
    for turn in range(min(n, len(open_))):
        number, whose = divmod(evaluated + turn, len(choosers))
        found = choosers[whose].worth(number, turn if len(choosers) == 1 else number)
        row = int(np.where(open_, found, -np.inf).argmax())
        chosen.append(row)
        open_[row] = False
        for chooser in choosers:
            chooser.believe(row)
        posterior.believe(row)
    return chosen


class _Chooser:
    """Says what each architecture of a pool is worth for one front.

    Args:
        settings: Of the method.
        goal: What is wanted on this front.
        posterior: Predictions for the pool.
        predicted: What the posterior's columns are.
        uniform: The first so many of the pool are uniform samples.
    """

    def __init__(self, settings: Settings, goal: _Goal, posterior: Posterior, predicted: _Goal, uniform: int) -> None:
        self._settings = settings
        self._goal = goal
        self._posterior = posterior
        self.columns = [predicted.keys.index(key) for key in goal.keys]
        self._mean = posterior.mean[:, self.columns]
        self._uniform = uniform
        self._front = goal.front
        self._likely = self._promising()
        self.reference = self._reference_point()

    @property
    def by_rank(self) -> bool:
        """Whether means alone decide."""
        return self._settings.acquisition == "rank"

    @property
    def _std(self) -> Floats:
        """`k x m`: what was believed since has made them smaller."""
        return self._posterior.std[:, self.columns]

    def worth(self, number: int, turn: int) -> Floats:
        """`k`: what each of the pool is worth.

        Args:
            number: How many evaluations of the search were for this front before: says whether a niche is looked at.
            turn: The same for whether the first objective alone counts, which begins anew with every batch where there
                is one front.
        """
        niche = self._niche(number)
        return self._score(self._for_first(turn)) if niche is None else self._score_below(*niche)

    def ranked(self) -> NDArray[np.int64]:
        """The pool in the order that measurements with the predicted means would have."""
        mean = self._mean
        over = [np.maximum(mean[:, column] - bound, 0.0) / (abs(bound) or 1.0) for column, bound in self._goal.bounds]
        violations = np.sum(over, axis=0) if over else None
        return pareto.order(mean[:, : self._goal.objectives], violations)

    def _for_first(self, turn: int) -> bool:
        """Whether this turn is for the first objective within the budgets alone."""
        share = self._settings.exploit
        several = self._goal.objectives > 1 and len(self._goal.bounds) > 0
        return several and int((turn + 1) * share) > int(turn * share)

    def _niche(self, number: int) -> tuple[int, float] | None:
        """The (column, limit) that evaluation `number` is chosen for, or None.

        By default every other one is spread: multiples of the golden ratio are even over quantiles of the uniform
        samples' predictions, however many there will be. In between it is the limit with the most to gain. That alone
        would spend what the middle of the front needs on its ends, and an even spread comes to a narrow end too seldom.
        """
        share, others = self._settings.niches, self._goal.objectives - 1
        turn = int((number + 1) * share)
        if self._goal.bounds or others < 1 or turn == int(number * share):
            return None
        column = 1 + turn % others
        known = self._mean[self._likely, column]
        visit, most = turn // others, 1.0 - self._settings.spread
        before = int(visit * most)  # visits to where most was to be gained
        if int((visit + 1) * most) > before:
            limits = [float(limit) for limit in np.quantile(known, _LIMITS)]
            return column, max(limits, key=lambda limit: self._score_below(column, limit).max())
        return column, float(np.quantile(known, (visit - before) * _GOLDEN % 1.0))

    def _score_below(self, column: int, limit: float) -> Floats:
        """Expected improvement of the first objective where another one does not exceed a limit."""
        mean, std = self._mean, self._std
        if self._settings.acquisition == "mean":
            std = _CERTAIN * std
        inside = self._front[self._front[:, column] <= limit, 0]
        # nothing is known to be feasible: whatever is better than the worst there is improves
        best = inside.min() if len(inside) else np.nanmax(self._goal.losses[:, 0])
        chance = chance_below(limit, mean[:, column], std[:, column]) * self._posterior.success
        return np.asarray(expected_excess(float(best), mean[:, 0], std[:, 0]) * chance)

    def _score(self, first_only: bool) -> Floats:
        goal, mean, std = self._goal, self._mean, self._std
        if self._settings.acquisition == "mean":
            std = _CERTAIN * std
        m = goal.objectives
        if first_only:
            best = self._front[:, 0].min() if len(self._front) else self.reference[0]
            score = expected_excess(float(best), mean[:, 0], std[:, 0])
        else:
            score = expected_hypervolume_improvement(self._front, self.reference, mean[:, :m], std[:, :m])
        for column, bound in goal.bounds:
            if first_only or column >= m:  # a bounded objective's budget is in the reference point already
                score = score * chance_below(bound, mean[:, column], std[:, column])
        score = score * self._posterior.success
        return score if score.max() > 0 else self._nearest(mean, self._std)

    def _nearest(self, mean: Floats, std: Floats) -> Floats:
        """Where no improvement is in sight: the likeliest to meet the budgets; without budgets the least known."""
        if not self._goal.bounds:
            return np.asarray(np.asarray(std / std.max(axis=0)).sum(axis=1))
        chances = [log_ndtr((bound - mean[:, column]) / std[:, column]) for column, bound in self._goal.bounds]
        return np.asarray(np.sum(chances, axis=0))

    def believe(self, row: int) -> None:
        """Count a choice as found, with its predicted losses; the posterior is told by whoever chose."""
        mean = self._mean[row]
        if all(mean[column] <= bound for column, bound in self._goal.bounds):
            self._front = np.concatenate((self._front, mean[None, : self._goal.objectives]))

    def _promising(self) -> NDArray[np.int64]:
        """Rows of those uniform samples that promise to succeed and to meet the budgets; where only a few do, the
        likeliest ones."""
        mean, std = self._mean[: self._uniform], self._std[: self._uniform]
        chance = self._posterior.success[: self._uniform].copy()
        for column, bound in self._goal.bounds:
            chance *= chance_below(bound, mean[:, column], std[:, column])
        enough = min(len(chance), 4 * self._settings.batch)
        likely = np.flatnonzero(chance > 0.5)
        return likely if len(likely) >= enough else np.argsort(-chance, kind="stable")[:enough]

    def _reference_point(self) -> Floats:
        """A quantile of the predictions for promising uniform samples. Bounded objectives end at their bound. With
        many contradicting objectives hardly anything is better than the median in all of them; the quantile is then
        raised."""
        m = self._goal.objectives
        mean = self._mean[self._likely, :m]
        point = np.zeros(m)
        asked = self._settings.reference
        if asked is None:
            asked = _MEDIAN if m < _MANY else _NEARLY_ALL
        for quantile in (asked, *_WIDER):
            point = np.quantile(mean, max(quantile, asked), axis=0)
            for column, bound in self._goal.bounds:
                if column < m:
                    # inside the budget every latency is welcome: the bound itself, not a quantile of what meets it
                    point[column] = bound
            if (mean < point).all(axis=1).mean() >= _INSIDE:
                break
        return np.asarray(point)
