"""An exact Gaussian process for each loss, on the blocks of `hwnas.predictors.encoding`.

k(a, b) = sum_g s_g exp(-|x_g(a) - x_g(b)|^2 / l_g) + c <x(a), x(b)>, and noise v on the diagonal: one scale and one
length for each block g (automatic relevance of blocks, not of single columns), and a linear part over all of them.
For costs of a device that linear part gives way to two others: over what is known of other devices
(`hwnas.predictors.costs`), and over counts of live operations, because latencies are nearly sums over operations.
Hyper-parameters maximise the posterior density under log-normal priors (Rasmussen & Williams 2006, sec. 5.4.1),
optionally less a ranking loss on leave-one-out predictions. Failures are rows too: one more process learns where a
measurement succeeds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri, dtrtri
from scipy.optimize import minimize
from scipy.special import expit

from hwnas.core.architecture import Architecture
from hwnas.core.protocols import Prediction
from hwnas.predictors.costs import KnownCosts
from hwnas.predictors.encoding import BLOCKS, Encoder

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_JITTER = 1e-6
_FEWEST = 2  # values that a process can be fitted to
# prior means and deviations of log s_g, log l_g, log c (encoding; known costs, operations), log v; targets have unit
# variance, distances a mean of 1
_PRIOR = ((0.5, 1.5), (1.0, 1.0), (0.1, 1.5), (0.3, 1.5), (3.0, 1.5), (0.05, 1.5))
_TEMPERATURE = 0.2  # of the ranking loss, in standard deviations of the target


@dataclass(frozen=True)
class Distances:
    """What kernels read: for two lists of `n` and `k` architectures.

    Attributes:
        blocks: For each block, `n x k` squared distances.
        linear: `n x k` inner products over all blocks; where costs are known also over these and over counts of
            operations.
    """

    blocks: tuple[NDArray[Any], ...]
    linear: tuple[NDArray[Any], ...]

    def select(self, rows: NDArray[Any], columns: NDArray[Any]) -> Distances:
        """The same for a part of both lists."""
        grid = np.ix_(rows, columns)
        return Distances(tuple(block[grid] for block in self.blocks), tuple(part[grid] for part in self.linear))


class Kernel:
    """Distances of encoded architectures.

    Args:
        encoder: Gives the features.
        blocks: The blocks with a scale and a length each.

    Attributes:
        costs: What is known of other devices; None if nothing is.
    """

    def __init__(self, encoder: Encoder, blocks: Sequence[str]) -> None:
        self.encoder = encoder
        self.costs: KnownCosts | None = None
        self._parts = [encoder.part(block) for block in blocks]

    def features(self, architectures: Sequence[Architecture]) -> Features:
        """What `distances` reads of `n` architectures."""
        linear = [self.encoder(architectures) / np.float32(np.sqrt(len(BLOCKS)))]
        if self.costs is not None:
            linear += [self.costs(architectures), self.encoder.operations(architectures)]
        return Features(self.encoder(architectures), tuple(linear))

    def distances(self, a: Features, b: Features) -> Distances:
        """Of `n` and `k` architectures."""
        return Distances(
            tuple(_squared(a.encoded[:, part], b.encoded[:, part]) for part in self._parts),
            tuple(x @ y.T for x, y in zip(a.linear, b.linear, strict=True)),
        )

    def size(self) -> int:
        """Number of blocks."""
        return len(self._parts)


@dataclass(frozen=True)
class Features:
    """What a kernel reads of `n` architectures.

    Attributes:
        encoded: `n x d`, all blocks side by side.
        linear: `n x q` for each linear part: encoding; where costs are known also these and counts of operations.
    """

    encoded: Singles
    linear: tuple[Singles, ...]

    @property
    def own(self) -> tuple[Singles, ...]:
        """Inner products of each architecture with itself, `n` for each linear part."""
        return tuple((part * part).sum(axis=1) for part in self.linear)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Features:
        """Some of the architectures."""
        return Features(self.encoded[rows], tuple(part[rows] for part in self.linear))


class Head:
    """One loss: standardised targets, hyper-parameters, the factor of the kernel matrix.

    Args:
        blocks: Number of blocks of the kernel.
        ranking: Weight of the ranking loss; see `_objective`.
        costs: Whether it is a cost of a device: its linear parts are other ones.
    """

    def __init__(self, blocks: int, ranking: float = 0.0, *, costs: bool = False) -> None:
        self.blocks = blocks
        self.ranking = ranking
        self.costs = costs
        self._linear_parts = slice(1, None) if costs else slice(0, 1)
        repeats = (blocks, blocks, *((0, 1, 1) if costs else (1, 0, 0)), 1)
        prior = [pair for pair, times in zip(_PRIOR, repeats, strict=True) for _ in range(times)]
        self._mean = np.log([mean for mean, _ in prior])
        self._deviation = np.array([deviation for _, deviation in prior])
        self.theta: Floats = self._mean.copy()
        self.rows: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    @property
    def noise(self) -> float:
        """Variance of the noise, in squared units of the loss."""
        return float(np.exp(self.theta[-1])) * self.scale**2

    @property
    def targets(self) -> Floats:
        """The fitted losses, those without nan."""
        return self._target * self.scale + self.centre

    def condition(self, distances: Distances, targets: Floats) -> None:
        """Compute the posterior for `n` targets with the present hyper-parameters.

        Args:
            distances: `n x n`.
            targets: `n` losses; rows with nan are left out.
        """
        self._standardise(targets)
        inside = distances.select(self.rows, self.rows)
        factor = _factor_in_any_case(self._covariance(inside)[0])
        self._inverse_factor = np.tril(dtrtri(factor, lower=1)[0])
        self._alpha = self._inverse_factor.T @ (self._inverse_factor @ self._target)
        self._single = self._inverse_factor.astype(np.float32)

    def optimise(self, distances: Distances, targets: Floats, iterations: int) -> None:
        """Improve the hyper-parameters from where they are by L-BFGS; arguments as `condition`."""
        self._standardise(targets)
        inside = distances.select(self.rows, self.rows)
        inside = Distances(
            *(tuple(part.astype(np.float64) for part in kind) for kind in (inside.blocks, inside.linear))
        )
        reach = 4 * self._deviation
        found = minimize(
            self._objective,
            self.theta,
            args=(inside, self._target),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(self._mean - reach, self._mean + reach, strict=True)),
            options={"maxiter": iterations, "maxfun": 2 * iterations},
        )
        if np.isfinite(found.fun):
            self.theta = np.asarray(found.x, dtype=np.float64)

    def covariance(self, distances: Distances) -> Singles:
        """`n x k` prior covariances of standardised losses, without noise."""
        e = np.exp(self.theta).astype(np.float32)
        total = self._linear(e, distances.linear)
        for g, block in enumerate(distances.blocks):
            total += np.exp(block * (-1 / e[self.blocks + g])) * e[g]
        return np.asarray(total)

    def _linear(self, e: NDArray[Any], parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The linear parts of this head with their weights."""
        weights = e[2 * self.blocks : -1]
        return np.asarray(sum(w * part for w, part in zip(weights, parts[self._linear_parts], strict=True)))

    def posterior(self, cross: Distances, own: Sequence[Singles]) -> tuple[Floats, Floats, Singles]:
        """Mean, variance (noise included) in units of the loss, and the whitened covariance `n x k`.

        Args:
            cross: `k x N` to all architectures of the fit.
            own: For each linear part, `k` inner products of each architecture with itself.
        """
        k = self.covariance(cross.select(np.arange(len(own[0])), self.rows))
        whitened = self._single @ k.T
        e = np.exp(self.theta)
        prior = e[: self.blocks].sum() + self._linear(e, own)
        variance = np.maximum(prior - (whitened * whitened).sum(axis=0), _JITTER) + e[-1]
        return k @ self._alpha * self.scale + self.centre, variance * self.scale**2, whitened

    def leave_one_out(self) -> tuple[Floats, Floats]:
        """Prediction of each fitted target from all others, with its standard deviation (Rasmussen & Williams 2006,
        eq. 5.12)."""
        precision = (self._inverse_factor**2).sum(axis=0)
        mean = (self._target - self._alpha / precision) * self.scale + self.centre
        return np.asarray(mean), np.asarray(self.scale / np.sqrt(precision))

    def _standardise(self, targets: Floats) -> None:
        self.rows = np.flatnonzero(np.isfinite(targets))
        if len(self.rows) < _FEWEST:
            raise ValueError(f"a Gaussian process wants at least {_FEWEST} values; got {len(self.rows)}")
        values = targets[self.rows]
        self.centre = float(values.mean())
        self.scale = float(values.std()) or 1.0
        self._target = (values - self.centre) / self.scale

    def _covariance(self, distances: Distances) -> tuple[Floats, list[Floats]]:
        """Kernel matrix with noise, and its blocks' parts."""
        e = np.exp(self.theta)
        parts = [e[g] * np.exp(-block / e[self.blocks + g]) for g, block in enumerate(distances.blocks)]
        total = np.asarray(sum(parts) + self._linear(e, distances.linear), dtype=np.float64)
        total.flat[:: len(total) + 1] += e[-1] + _JITTER
        return total, parts

    def _objective(self, theta: Floats, distances: Distances, y: Floats) -> tuple[float, Floats]:
        """Negative log posterior density and its gradient; with `ranking` w, plus w n R.

        R is the mean over pairs y_i < y_j of log(1 + exp(-(m_j - m_i) / t)), m the leave-one-out predictions. With
        A = K^-1, a = A y, q = diag(A): m = y - a / q, and for any change dK the change of R is the inner product of
        dK with u a^T - A diag(v) A, u = A (r / q), v = r a / q^2, r = dR/dm.
        """
        self.theta, before = theta, self.theta
        kernel, parts = self._covariance(distances)
        self.theta = before
        n, b, e = len(y), self.blocks, np.exp(theta)
        try:
            factor = _factor(kernel)
        except np.linalg.LinAlgError:
            return 1e6, np.zeros_like(theta)
        lower = np.tril(dpotri(factor, lower=1)[0])
        inverse = lower + np.tril(lower, -1).T
        alpha = inverse @ y
        value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factor)).sum())
        slope = 0.5 * (inverse - np.outer(alpha, alpha))  # d value / dK
        if self.ranking > 0:
            precision = np.diag(inverse)
            loss, r = ranking_loss(y - alpha / precision, y)
            value += self.ranking * n * loss
            u, v = inverse @ (r / precision), r * alpha / precision**2
            slope += self.ranking * n * (np.outer(u, alpha) - (inverse * v) @ inverse)
        gradient = np.empty_like(theta)
        for g, part in enumerate(parts):
            weighted = slope * part
            gradient[g] = weighted.sum()
            gradient[b + g] = np.vdot(weighted, distances.blocks[g]) / e[b + g]
        for i in range(2 * b, len(theta) - 1):
            gradient[i] = e[i] * np.vdot(slope, distances.linear[self._linear_parts][i - 2 * b])
        gradient[-1] = e[-1] * np.trace(slope)
        z = (theta - self._mean) / self._deviation
        return value + 0.5 * float(z @ z), gradient + z / self._deviation


class Posterior:
    """Predictions for a pool of `k` architectures that can be conditioned on some of themselves.

    Attributes:
        mean: `k x m`, in units of the losses.
        variance: `k x m`, noise included.
        success: `k` probabilities that all measurements succeed.
    """

    def __init__(
        self,
        kernel: Kernel,
        heads: Sequence[Head],
        features: Features,
        answers: Sequence[tuple[Floats, Floats, Singles]],
        success: Floats,
    ) -> None:
        self._kernel = kernel
        self._heads = heads
        self._features = features
        self._whitened = [answer[2] for answer in answers]
        self.mean: Floats = np.stack([answer[0] for answer in answers], axis=1).astype(np.float64)
        self.variance: Floats = np.stack([answer[1] for answer in answers], axis=1).astype(np.float64)
        self.success = success
        self._removed: list[list[Floats]] = [[] for _ in heads]

    @property
    def std(self) -> Floats:
        """`k x m` standard deviations."""
        return np.sqrt(self.variance)

    def about(self, columns: Sequence[int]) -> Posterior:
        """The same predictions of some of the losses alone. What either is made to believe later, the other is not."""
        part = copy(self)
        part._heads = [self._heads[j] for j in columns]
        part._whitened = [self._whitened[j] for j in columns]
        part._removed = [list(self._removed[j]) for j in columns]
        part.mean, part.variance = self.mean[:, list(columns)], self.variance[:, list(columns)]
        return part

    def draw(self, rows: NDArray[np.int64], n: int, *, rng: np.random.Generator) -> Floats:
        """Losses that a part of the pool may turn out to have, noise included, before anything was believed.

        Args:
            rows: `k` of the pool.
            n: Draws.
            rng: Of these draws.

        Returns:
            `n x k x m`; within a draw, losses of a column depend on each other as the process says.
        """
        features = self._features.take(rows)
        inner = self._kernel.distances(features, features)
        drawn = []
        for j, head in enumerate(self._heads):
            white = self._whitened[j][:, rows].astype(np.float64)
            covariance = head.covariance(inner) - white.T @ white
            covariance.flat[:: len(rows) + 1] += head.noise / head.scale**2
            factor = np.tril(_factor_in_any_case(covariance))
            drawn.append(self.mean[rows, j] + head.scale * (rng.standard_normal((n, len(rows))) @ factor.T))
        return np.stack(drawn, axis=2)

    def believe(self, row: int) -> None:
        """Condition on row's own mean as its value ("kriging believer", Ginsbourger et al. 2010): means stay,
        variances shrink around it."""
        near = self._kernel.distances(self._features, self._features.take([row]))
        for j, head in enumerate(self._heads):
            prior = head.covariance(near)[:, 0]
            covariance = (prior - self._whitened[j].T @ self._whitened[j][:, row]) * head.scale**2
            for earlier in self._removed[j]:
                covariance = covariance - earlier * earlier[row]
            share = covariance / np.sqrt(max(float(self.variance[row, j]), 1e-12))
            self._removed[j].append(share)
            self.variance[:, j] = np.maximum(self.variance[:, j] - share**2, head.noise)


class GaussianProcess:
    """A `Predictor`: one process for each loss, and one for success.

    Args:
        encoder: Of the space.
        blocks: Blocks with a scale and a length each.
        iterations: L-BFGS steps of each `fit`; it continues from the hyper-parameters before.
        ranking: Weight of the leave-one-out ranking loss.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        blocks: Sequence[str] = ("code", "shape"),
        iterations: int = 8,
        ranking: float = 0.0,
    ) -> None:
        self.kernel = Kernel(encoder, blocks)
        self.iterations = iterations
        self.ranking = ranking
        self.heads: list[Head] = []
        self._success = Head(self.kernel.size())
        self._failures = False
        self._priced: frozenset[int] = frozenset()
        self._features = self.kernel.features([])

    def lend(self, costs: KnownCosts, columns: Collection[int]) -> None:
        """Let predictions of some losses start from what other devices are known to need.

        Args:
            costs: Of other devices.
            columns: The losses that are costs of a device.
        """
        self.kernel.costs = costs
        self._priced = frozenset(columns)

    def fit(self, architectures: Sequence[Architecture], losses: Floats, *, rng: np.random.Generator) -> None:
        """Learn hyper-parameters and condition on the losses.

        Args:
            architectures: `n`.
            losses: `n x m`; entries with nan are left out, and teach where measurements fail.
            rng: Not used: a fit is a function of its data and of the hyper-parameters before.

        Raises:
            ValueError: If a column has fewer than two values.
        """
        del rng
        self._learn(architectures, losses, optimise=True)

    def condition(self, architectures: Sequence[Architecture], losses: Floats) -> None:
        """As `fit`, with the present hyper-parameters."""
        self._learn(architectures, losses, optimise=False)

    def predict(self, architectures: Sequence[Architecture]) -> Prediction:
        posterior = self.posterior(architectures)
        return Prediction(posterior.mean, posterior.std)

    def posterior(self, architectures: Sequence[Architecture]) -> Posterior:
        """Predictions that can be conditioned further."""
        features = self.kernel.features(architectures)
        cross, own = self.kernel.distances(features, self._features), features.own
        answers = [head.posterior(cross, own) for head in self.heads]
        success = np.ones(len(architectures))
        if self._failures:
            success = np.clip(self._success.posterior(cross, own)[0], 0.01, 1.0)
        return Posterior(self.kernel, self.heads, features, answers, success)

    def leave_one_out(self) -> list[tuple[Floats, Floats, Floats]]:
        """For each head, `n` predictions of fitted values from all others, their deviations, and the values."""
        return [(*head.leave_one_out(), head.targets) for head in self.heads]

    def hyper_parameters(self) -> dict[str, Any]:
        """For `set_hyper_parameters`: arrays of logarithms."""
        return {"heads": [head.theta.copy() for head in self.heads], "success": self._success.theta.copy()}

    def set_hyper_parameters(self, saved: Mapping[str, Any]) -> None:
        plain = len(self._success.theta)
        self.heads = [self._head(costs=len(theta) > plain) for theta in saved["heads"]]
        for head, theta in zip(self.heads, saved["heads"], strict=True):
            head.theta = np.array(theta, dtype=np.float64)
        self._success.theta = np.array(saved["success"], dtype=np.float64)

    def _head(self, *, costs: bool) -> Head:
        return Head(self.kernel.size(), self.ranking, costs=costs)

    def _learn(self, architectures: Sequence[Architecture], losses: Floats, *, optimise: bool) -> None:
        for j in range(losses.shape[1]):
            if j == len(self.heads) or self.heads[j].costs is not (j in self._priced):
                self.heads[j : j + 1] = [self._head(costs=j in self._priced)]
        self._features = self.kernel.features(architectures)
        distances = self.kernel.distances(self._features, self._features)
        succeeded = np.isfinite(losses).all(axis=1)
        self._failures = not bool(succeeded.all())
        tasks: list[tuple[Head, Floats]] = [(head, losses[:, j]) for j, head in enumerate(self.heads)]
        if self._failures:
            tasks.append((self._success, np.asarray(succeeded, dtype=np.float64)))
        for head, targets in tasks:
            if optimise:
                head.optimise(distances, targets, self.iterations)
            head.condition(distances, targets)


def ranking_loss(predicted: Floats, truth: Floats) -> tuple[float, Floats]:
    """Mean logistic loss over pairs in the wrong order, and its gradient by `predicted`.

    Args:
        predicted: `n`, standardised.
        truth: `n`; equal values make no pair.
    """
    pairs = truth[:, None] < truth[None, :]
    number = max(1, int(pairs.sum()))
    gap = (predicted[None, :] - predicted[:, None]) / _TEMPERATURE
    loss = float(np.logaddexp(0.0, -gap)[pairs].sum()) / number
    pull = np.where(pairs, -expit(-gap), 0.0) / (number * _TEMPERATURE)
    return loss, np.asarray(pull.sum(axis=0) - pull.sum(axis=1))


def _factor(kernel: Floats) -> Floats:
    factor, info = dpotrf(kernel, lower=1)
    if info:
        raise np.linalg.LinAlgError("the kernel matrix is not positive definite")
    return np.asarray(factor)


def _factor_in_any_case(kernel: Floats) -> Floats:
    """The factor, with as much more on the diagonal as it takes: distances and inner products are rounded to single
    precision, which a kernel with large linear weights and hardly any noise does not survive as it is."""
    for extra in (0.0, *np.geomspace(_JITTER, 1.0, 7)):
        try:
            return _factor(kernel + extra * np.eye(len(kernel)))
        except np.linalg.LinAlgError:
            continue
    raise np.linalg.LinAlgError("the kernel matrix is not positive definite, whatever is added to its diagonal")


def _squared(a: Singles, b: Singles) -> Singles:
    """`n x k` squared Euclidean distances."""
    distance = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * (a @ b.T)
    return np.asarray(np.maximum(distance, 0))
