"""Other people's optimisers on the same task: one ask and tell for each, one loop that counts what they pay.

A peer sees six 5-way choices (the code of a cell) and two losses or more. A repeat of an evaluated cell is answered
from memory and costs nothing, as it would in any sensible use of these packages; a cell that could not be measured is
told as a failure where the package knows failures, and not at all where it does not. Settings are each package's
defaults but where a comment says why not.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from hwnas.seeding import torch_seeded

Code = tuple[int, ...]
Losses = tuple[float, ...]

EDGES, OPERATIONS = 6, 5
START = 20  # uniform evaluations before a Gaussian process is fitted
ASKED = 20  # repeats are free, but a peer that asks for this many times its budget has converged and is stopped


class Peer(Protocol):
    """An optimiser that minimises several losses."""

    def ask(self) -> Sequence[Code]:
        """The next cells, which may have been asked for before."""
        ...

    def tell(self, code: Code, losses: Losses | None) -> None:
        """The losses of a cell that was asked for, in the order of asking; None where it could not be measured."""
        ...


class OptunaPeer:
    """Optuna's samplers (Akiba et al. 2019, arXiv 1907.10902).

    Args:
        sampler: "tpe" (multivariate), "nsga2" or "gp".
        seed: Of the sampler.
        limit: Most of the second loss (latency) that is feasible, as the samplers' own constraint; None for none.
        objectives: How many losses.
    """

    def __init__(self, sampler: str, seed: int, limit: float | None, objectives: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        samplers = optuna.samplers
        make: Mapping[str, Callable[..., Any]] = {
            "tpe": lambda **more: samplers.TPESampler(multivariate=True, **more),
            "nsga2": lambda **more: samplers.NSGAIISampler(population_size=20, **more),  # of 50: too few generations
            "gp": lambda **more: samplers.GPSampler(n_startup_trials=START, **more),
        }
        constraint = None if limit is None else self._excess
        self._failed = optuna.trial.TrialState.FAIL
        self._limit = limit
        self._study = optuna.create_study(
            directions=["minimize"] * objectives, sampler=make[sampler](seed=seed, constraints_func=constraint)
        )
        self._trial: Any = None

    @staticmethod
    def _excess(trial: Any) -> Sequence[float]:
        return (trial.user_attrs.get("excess", 1e9),)

    def ask(self) -> Sequence[Code]:
        self._trial = self._study.ask()
        return [tuple(self._trial.suggest_categorical(f"edge{i}", list(range(OPERATIONS))) for i in range(EDGES))]

    def tell(self, code: Code, losses: Losses | None) -> None:
        del code
        if losses is None:
            self._study.tell(self._trial, state=self._failed)
            return
        if self._limit is not None:
            self._trial.set_user_attr("excess", losses[1] - self._limit)
        self._study.tell(self._trial, losses)


class SyneTunePeer:
    """Syne Tune's multi-objective regularised evolution (Salinas et al. 2022): tournaments by non-dominated sorting.

    Release 0.16 reads the sorted order (which row comes first) as each row's score, so that the best rows do not win.
    `ranked` hands it the places in that order instead, as its documentation describes.
    """

    POPULATION, SAMPLE = 50, 10  # as our `evolution`; with its default of 100 half of 200 evaluations are uniform

    def __init__(self, seed: int, *, ranked: bool) -> None:
        from syne_tune.config_space import choice
        from syne_tune.optimizer.schedulers.multiobjective import MultiObjectiveRegularizedEvolution
        from syne_tune.optimizer.schedulers.multiobjective.multiobjective_priority import NonDominatedPriority

        priority = NonDominatedPriority()
        self._searcher = MultiObjectiveRegularizedEvolution(
            {f"edge{i}": choice(list(range(OPERATIONS))) for i in range(EDGES)},
            population_size=self.POPULATION,
            sample_size=self.SAMPLE,
            multiobjective_priority=(lambda losses: np.argsort(priority(losses))) if ranked else priority,
            random_seed=seed,
        )
        self._rng = np.random.default_rng(seed)
        self._told = 0

    def ask(self) -> Sequence[Code]:
        if self._told < self.POPULATION:  # its own uniform founders do not follow the seed
            return [tuple(self._rng.integers(0, OPERATIONS, size=EDGES).tolist())]
        config = self._searcher.suggest()
        return [tuple(int(config[f"edge{i}"]) for i in range(EDGES))]

    def tell(self, code: Code, losses: Losses | None) -> None:
        if losses is not None:
            config = {f"edge{i}": value for i, value in enumerate(code)}
            self._searcher.on_trial_complete(self._told, config, list(losses))
            self._told += 1


class BoTorchPeer:
    """qLogNEHVI (Ament et al. 2023, arXiv 2310.20708) on BoTorch's Gaussian processes for categorical inputs.

    One `MixedSingleTaskGP` a loss, reference point as BoTorch infers it from the observed front, four cells at a
    time by its discrete local search among cells that were not asked for yet.
    """

    BATCH = 4

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._asked: dict[Code, None] = {}
        self._x: list[Code] = []
        self._y: list[Losses] = []

    def ask(self) -> Sequence[Code]:
        codes = self._model_based() if len(self._x) > 1 else self._uniform(START)
        self._asked.update(dict.fromkeys(codes))
        return codes

    def _uniform(self, n: int) -> list[Code]:
        return list(map(tuple, self._rng.integers(0, OPERATIONS, size=(n, EDGES)).tolist()))

    def _model_based(self) -> list[Code]:
        import torch
        from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import MixedSingleTaskGP, ModelListGP
        from botorch.optim import optimize_acqf_discrete_local_search
        from botorch.sampling.normal import SobolQMCNormalSampler
        from botorch.utils.multi_objective.hypervolume import infer_reference_point
        from botorch.utils.multi_objective.pareto import is_non_dominated
        from gpytorch.mlls import SumMarginalLogLikelihood

        x = torch.tensor(self._x, dtype=torch.float64)
        y = -torch.tensor(self._y, dtype=torch.float64)  # BoTorch maximises
        y = (y - y.mean(0)) / y.std(0)
        columns = list(range(EDGES))
        with warnings.catch_warnings(), torch_seeded(self._rng):
            warnings.simplefilter("ignore")  # jitter added, fits retried: BoTorch deals with both
            model = ModelListGP(*(MixedSingleTaskGP(x, y[:, [j]], cat_dims=columns) for j in range(y.shape[1])))
            fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
            acquisition = qLogNoisyExpectedHypervolumeImprovement(
                model,
                infer_reference_point(y[is_non_dominated(y)]),
                x,
                sampler=SobolQMCNormalSampler(torch.Size([128]), seed=self._seed),
                prune_baseline=True,
            )
            found, _ = optimize_acqf_discrete_local_search(
                acquisition,
                [torch.arange(OPERATIONS, dtype=torch.float64)] * EDGES,
                q=self.BATCH,
                num_restarts=4,
                raw_samples=512,
                X_avoid=torch.tensor(list(self._asked), dtype=torch.float64),
            )
        return list(map(tuple, found.round().long().tolist()))

    def tell(self, code: Code, losses: Losses | None) -> None:
        if losses is not None:
            self._x.append(code)
            self._y.append(losses)


@contextlib.contextmanager
def _all_seeded(rng: np.random.Generator) -> Iterator[None]:
    """The global streams of Python, NumPy and torch seeded from `rng`, and restored; for packages that draw there."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(int(rng.integers(2**62)))
    np.random.set_state(np.random.RandomState(int(rng.integers(2**32))).get_state())  # noqa: NPY002
    try:
        with torch_seeded(rng):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


class HeboPeer:
    """HEBO's `GeneralBO`, its optimiser for several objectives and constraints (Cowen-Rivers et al. 2022, arXiv
    2012.03826; release 0.3.6): one Gaussian process a loss on embeddings of the choices, NSGA-II over their lower
    confidence bounds, and of that front four cells, the least certain one among them.

    Args:
        seed: Of every stream that HEBO draws from; it takes none itself.
        limit: Most of the second loss (latency) that is feasible, as `GeneralBO`'s own constraint; None for none.
        objectives: How many losses.
    """

    BATCH = 4

    def __init__(self, seed: int, limit: float | None, objectives: int) -> None:
        from hebo.acq_optimizers import evolution_optimizer
        from hebo.design_space.design_space import DesignSpace
        from hebo.optimizers.general import GeneralBO

        self._inner = evolution_optimizer
        self._names = [f"edge{i}" for i in range(EDGES)]
        choice = {"type": "cat", "categories": list(range(OPERATIONS))}
        space = DesignSpace().parse([{"name": name, **choice} for name in self._names])
        self._limit = limit
        self._rng = np.random.default_rng(seed)
        self._optimiser = GeneralBO(space, num_obj=objectives, num_constr=0 if limit is None else 1)

    def ask(self) -> Sequence[Code]:
        # pymoo of release 0.6.2 follows a seed of its own, which HEBO does not pass on
        seeded = partial(self._inner.minimize, seed=int(self._rng.integers(2**31)))
        with warnings.catch_warnings(), _all_seeded(self._rng), patch.object(self._inner, "minimize", seeded):
            warnings.simplefilter("ignore")  # HEBO calls NumPy and torch in ways that are deprecated by now
            found = self._optimiser.suggest(n_suggestions=self.BATCH)
        return list(map(tuple, found[self._names].to_numpy(dtype=int).tolist()))

    def tell(self, code: Code, losses: Losses | None) -> None:
        import pandas as pd

        if losses is not None:
            told = losses if self._limit is None else (*losses, losses[1] - self._limit)
            self._optimiser.observe(pd.DataFrame([code], columns=self._names), np.array([told]))


class NepsPeer:
    """NePS's Bayesian optimisation (release 0.17.0, github.com/automl/neps), the optimiser that it offers where there
    are neither fidelities nor priors: one Gaussian process for all losses, qLogNEHVI, four cells at a time.

    That release hands the losses, which are to become small, to BoTorch, which makes them large; with one loss it turns
    the sign. Here it is told the losses with the sign turned, and as reference point the worst that was seen of each,
    which it would take itself.
    """

    BATCH = 4

    def __init__(self, seed: int) -> None:
        import neps

        choices = {f"edge{i}": neps.HPOCategorical(choices=list(range(OPERATIONS))) for i in range(EDGES)}
        self._optimiser = neps.algorithms.bayesian_optimization(neps.SearchSpace(choices))
        self._loop = neps.AskAndTell(self._optimiser)
        self._rng = np.random.default_rng(seed)
        self._waiting: deque[Any] = deque()  # trials that were asked for, in that order
        self._worst: Losses | None = None

    def ask(self) -> Sequence[Code]:
        if self._worst is not None:
            self._optimiser.reference_point = tuple(-x for x in self._worst)
        with warnings.catch_warnings(), _all_seeded(self._rng):
            warnings.simplefilter("ignore")  # jitter added, fits retried: BoTorch deals with both
            self._waiting.extend(self._loop.ask(n=self.BATCH))
        return [tuple(int(trial.config[f"edge{i}"]) for i in range(EDGES)) for trial in self._waiting]

    def tell(self, code: Code, losses: Losses | None) -> None:
        del code
        trial = self._waiting.popleft()
        if losses is not None:  # a failure stays pending: release 0.17.0 cannot be told of one beside several losses
            self._worst = tuple(map(max, losses, self._worst or losses))
            self._loop.tell(trial, [-x for x in losses])


# each is made of a seed, a latency limit (None for none) and the number of losses
PEERS: Mapping[str, Callable[[int, float | None, int], Peer]] = {
    "optuna-tpe": lambda seed, limit, m: OptunaPeer("tpe", seed, limit, m),
    "optuna-nsga2": lambda seed, limit, m: OptunaPeer("nsga2", seed, limit, m),
    "syne-tune-morea": lambda seed, _, m: SyneTunePeer(seed, ranked=False),
    "syne-tune-morea-ranked": lambda seed, _, m: SyneTunePeer(seed, ranked=True),
    "optuna-gp": lambda seed, limit, m: OptunaPeer("gp", seed, limit, m),
    "botorch-qlognehvi": lambda seed, _, m: BoTorchPeer(seed),
    "hebo": HeboPeer,
    "neps-bo": lambda seed, _, m: NepsPeer(seed),
}
SLOW = ("optuna-gp", "botorch-qlognehvi", "hebo", "neps-bo")  # minutes a search
APART = ("neps-bo",)  # in an environment of its own: runs only where it is asked for by name
NO_BUDGET = (
    "syne-tune-morea",
    "syne-tune-morea-ranked",
    "botorch-qlognehvi",
    "neps-bo",
)  # no constraint, or none that is set here


def run_peer(
    peer: Peer, losses: NDArray[np.float64], row: Callable[[Code], int], queries: int
) -> tuple[list[int], int]:
    """One search.

    Args:
        peer: A fresh optimiser.
        losses: `n x m`, the table; nan where a cell could not be measured.
        row: Place of a cell in the table.
        queries: Distinct cells that it may pay.

    Returns:
        The rows in the order in which they were paid for, and how many cells were asked for, repeats included.
    """
    paid: dict[int, None] = {}
    asked = 0
    while len(paid) < queries and asked < ASKED * queries:
        for code in peer.ask():
            asked += 1
            place = row(code)
            if place not in paid and len(paid) == queries:
                break
            paid[place] = None
            known = losses[place]
            peer.tell(code, None if np.isnan(known).any() else tuple(known.tolist()))
    return list(paid), asked
