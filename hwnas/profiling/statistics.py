"""From samples to figures. Pure functions of arrays; latencies are on a log scale unless they say ms.

A shared machine flips between a fast and a slow mode every second or so, for all networks alike but not to the same
degree. Medians jump between the modes, minima find the fast one only if it is visited, and values normalised by round
rank best but keep an error in level. The figure used here is the geometric mean of a network's minimum and of its
effect in a two-way median polish (Tukey 1977, ch. 11) whose level is that of the minima: the latency in the fast mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# between sessions, relative: assumed of a device that was never calibrated, and no calibration promises less. One that
# found 1.1 % in 13 seconds on a quiet machine was followed by two sweeps, a minute apart, that differed by 3.3 %
LEAST_SIGMA = 0.025
BIMODAL = 0.1  # minimum and polished effect so far apart: two modes
_POLISH = 10  # sweeps of the polish; it settles within a few
_PRIOR = 2  # degrees of freedom that all networks of a batch stand for where one seems to be worse
_P99_SAMPLES = 662  # for a 99th percentile, by MLPerf's rule for early stopping


@dataclass(frozen=True)
class Estimate:
    """Figures of `n` networks that were measured together, on a log scale.

    Attributes:
        value: `n`, log ms: the primary figure.
        low, high: `n`, ends of the 95 % interval within this session.
        minimum, polished: `n`, its two parts.
        draws: `b x n`, the figure in resamples of rounds; joint, so that networks can be compared.
        rounds: `r`, effect of each round.
    """

    value: Floats
    low: Floats
    high: Floats
    minimum: Floats
    polished: Floats
    draws: Floats
    rounds: Floats

    @property
    def half(self) -> Floats:
        """`n`, half of the interval's width: about the relative half width."""
        return np.asarray((self.high - self.low) / 2)


def estimate(visits: Floats, *, resamples: int, rng: np.random.Generator) -> Estimate:
    """The figures of networks from their visits.

    Args:
        visits: `n x r`, log of the least time of each visit, in ms; nan where a network was not visited. Every
            network has at least one visit.
        resamples: Bootstrap samples `b` of rounds; all networks of a round stay together.
        rng: Draws them.

    Returns:
        Value, interval and draws. With fewer than two rounds the interval is infinitely wide.
    """
    if np.isnan(visits).all(axis=1).any():
        raise ValueError("every network wants at least one visit")
    effects = _round_effects(visits)
    flat = visits - effects
    minimum, polished = np.nanmin(visits, axis=1), np.nanmedian(flat, axis=1)
    value, level = _combine(minimum, polished)
    n, r = visits.shape
    if r < 2:
        wide = np.full(n, np.inf)
        return Estimate(value, -wide, wide, minimum, polished + level, np.tile(value, (1, 1)), effects)
    draws = _bootstrap(visits, flat, resamples, rng)
    draws = np.where(np.isnan(draws), value, draws)  # a resample without any visit of a network tells nothing of it
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    low, high = np.minimum(low, value), np.maximum(high, value)
    return Estimate(value, low, high, minimum, polished + level, draws, effects)


def _round_effects(visits: Floats) -> Floats:
    """`r`: how much slower each round was, by two-way median polish; their median is 0."""
    rest = visits.copy()
    total = np.zeros(visits.shape[1])
    for _ in range(_POLISH):
        rest -= np.nanmedian(rest, axis=1, keepdims=True)
        shift = np.nanmedian(rest, axis=0)
        rest -= shift
        total += shift
        if np.abs(shift).max() < 1e-9:
            break
    return np.asarray(total - np.median(total))


def _combine(minimum: Floats, polished: Floats) -> tuple[Floats, float]:
    """Mean of the minima and of the polished effects on the minima's level; and that level's offset."""
    level = np.median(minimum - polished)
    return np.asarray((minimum + polished + level) / 2), float(level)


def _bootstrap(visits: Floats, flat: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """`b x n` figures from rounds drawn with replacement, by the circular block bootstrap (Politis and Romano 1992).

    Round effects stay as they are: they come from all networks at once.

    A network that no drawn round has visited is nan there.
    """
    n, r = visits.shape
    # the machine stays in a mode for several rounds: blocks of r^(1/3) of them are drawn, round the end if need be
    length = round(r ** (1 / 3))
    starts = rng.integers(0, r, (resamples, -(-r // length), 1))
    chosen = ((starts + np.arange(length)) % r).reshape(resamples, -1)[:, :r]
    polished, minima = np.empty((resamples, n)), np.empty((resamples, n))
    for i in range(n):  # one network at a time keeps the arrays small
        ordered = np.sort(flat[i][chosen], axis=1)  # nan last
        known = np.sum(~np.isnan(ordered), axis=1, keepdims=True)
        middle = [np.take_along_axis(ordered, np.maximum(at, 0), 1) for at in ((known - 1) // 2, known // 2)]
        polished[:, i] = np.where(known > 0, (middle[0] + middle[1]) / 2, np.nan)[:, 0]
        least = np.fmin.reduce(visits[i][chosen], axis=1)  # fmin passes nan over
        minima[:, i] = least
    level = np.nanmedian(minima - polished, axis=1, keepdims=True)
    return np.asarray((minima + polished + level) / 2)


def with_session(half: Floats | float, sigma: float) -> Floats:
    """Half width with the part that only another session would show: sqrt(half^2 + (1.96 sigma)^2), all relative."""
    return np.asarray(np.hypot(half, 1.96 * sigma))


def paces(sessions: Floats) -> Floats:
    """`s`: how much slower each of several processes was for all networks alike, as log factors: the median over
    networks of what each took more than its own mean over the processes.

    Args:
        sessions: `s x n`, log latencies of the same networks.
    """
    return np.asarray(np.median(sessions - sessions.mean(axis=0), axis=1))


def shared_doubt(sessions: Floats) -> float:
    """What the pace of processes says of the mean over them: its standard deviation, as one that 1.96 belongs to.

    It moves all figures alike. It is known from as many values as there are processes, so Student's t takes the place
    of 1.96. 0 for one process, which does not show it.

    Args:
        sessions: `s x n`, log latencies of the same networks.
    """
    s = len(sessions)
    return _wide(s - 1) * float(np.std(paces(sessions), ddof=1)) / math.sqrt(s) if s > 1 else 0.0


def own_doubt(sessions: Floats, which: int, sigma: float) -> float:
    """Standard deviation between processes of one network's mean over them, without the pace that all share; as one
    that 1.96 belongs to.

    It is `sigma`, or what the residuals of all networks show (pooled) where that is more; or its own residuals' where
    these are still more: a moderated variance (Smyth 2004, doi:10.2202/1544-6115.1027) in which what is known of all
    networks counts as `_PRIOR` degrees of freedom.

    Args:
        sessions: `s x n`, log latencies of the same networks.
        which: The network's column.
        sigma: Standard deviation between sessions as far as it is known, relative.
    """
    s, n = sessions.shape
    if s < 2:
        return sigma
    seen = (sessions - paces(sessions)[:, None]).var(axis=0, ddof=1)
    known, freedom = sigma, (s - 1) * (n - 1)
    if freedom:
        known = max(sigma, _wide(freedom) * math.sqrt(float(seen.sum()) * (s - 1) / freedom))
    own = float(seen[which])
    if own > known**2:
        known = max(known, _wide(_PRIOR + s - 1) * math.sqrt((_PRIOR * known**2 + (s - 1) * own) / (_PRIOR + s - 1)))
    return known / math.sqrt(s)


def whole_doubt(own: float, shared: float, sigma: float) -> float:
    """Standard deviation of a figure by its own and its shared part. Processes that follow each other within seconds do
    not show how a machine changes within minutes, which `sigma` stands for as well: it is never less than that."""
    return max(sigma, math.hypot(own, shared))


def _wide(freedom: int) -> float:
    """How much more than 1.96 standard deviations hold 95 % where these are estimated with so many degrees of
    freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom) / 1.96)


@dataclass(frozen=True)
class Spread:
    """Plain descriptions of one network's samples, in ms where they are latencies.

    Attributes:
        minimum, median, mean, p90, p95: Of all samples.
        p99: None from fewer samples than a 99th percentile wants.
        iqr, mad, cov: Interquartile range, median absolute deviation and standard deviation, relative to the median
            (the last to the mean).
        low, high, mild, severe: Samples outside Tukey's fences (1.5 and 3 interquartile ranges): below, above, only
            outside the inner, outside the outer one. They are counted, and kept.
        samples: How many.
    """

    minimum: float
    median: float
    mean: float
    p90: float
    p95: float
    p99: float | None
    iqr: float
    mad: float
    cov: float
    low: int
    high: int
    mild: int
    severe: int
    samples: int

    def scaled(self, factor: float) -> Spread:
        """The spread of samples that are all so many times as long."""
        times = ("minimum", "median", "mean", "p90", "p95", "p99")
        changed = {name: factor * value for name in times if (value := getattr(self, name)) is not None}
        return replace(self, **changed)


def spread(samples: Floats) -> Spread:
    """Describe samples.

    Args:
        samples: At least one, ms.
    """
    q1, median, q3, p90, p95, p99 = np.quantile(samples, (0.25, 0.5, 0.75, 0.9, 0.95, 0.99))
    width = q3 - q1
    inner = (samples < q1 - 1.5 * width) | (samples > q3 + 1.5 * width)
    outer = (samples < q1 - 3 * width) | (samples > q3 + 3 * width)
    mean = float(samples.mean())
    return Spread(
        minimum=float(samples.min()),
        median=float(median),
        mean=mean,
        p90=float(p90),
        p95=float(p95),
        p99=float(p99) if len(samples) >= _P99_SAMPLES else None,
        iqr=float(width / median),
        mad=float(np.median(np.abs(samples - median)) / median),
        cov=float(samples.std() / mean),
        low=int((inner & (samples < median)).sum()),
        high=int((inner & (samples > median)).sum()),
        mild=int((inner & ~outer).sum()),
        severe=int(outer.sum()),
        samples=len(samples),
    )


@dataclass(frozen=True)
class Comparison:
    """Two networks that were measured in the same rounds.

    Attributes:
        ratio: Latency of the first over that of the second.
        low, high: 95 % interval of the ratio, between-session part included.
        chance: Probability that the first is faster.
    """

    ratio: float
    low: float
    high: float
    chance: float

    @property
    def tie(self) -> bool:
        """Whether the interval holds 1: nobody is known to be faster."""
        return self.low <= 1 <= self.high


def compare(first: Floats, second: Floats, sigma: float, *, rng: np.random.Generator) -> Comparison:
    """Compare two networks by the draws of one `Estimate`.

    Args:
        first, second: `b` draws of each, from the same resamples.
        sigma: Between-session standard deviation of one network, relative.
        rng: For the between-session part.
    """
    difference = first - second
    session = rng.standard_normal(len(difference)) * sigma * np.sqrt(2)
    low, high = np.quantile(difference + session, (0.025, 0.975))
    return Comparison(
        float(np.exp(np.median(difference))),
        float(np.exp(low)),
        float(np.exp(high)),
        float(np.mean(difference + session < 0)),
    )


@dataclass(frozen=True)
class Retests:
    """How well figures repeat: networks that a later batch measured again.

    Attributes:
        pairs: How many.
        tau: Kendall's tau between first and second figures; None from fewer than three.
        relative: Median of |second / first - 1|.
        covered: Share of pairs whose difference is inside their joint interval.
    """

    pairs: int
    tau: float | None
    relative: float
    covered: float


def retests(first: Sequence[float], second: Sequence[float], halves: Sequence[tuple[float, float]]) -> Retests | None:
    """Summarise retests; None without any.

    Args:
        first, second: Latencies, ms.
        halves: Relative half widths of both.
    """
    if not first:
        return None
    from scipy.stats import kendalltau

    a, b, h = np.asarray(first), np.asarray(second), np.asarray(halves)
    off = np.abs(np.log(b / a))
    tau = float(kendalltau(a, b).statistic) if len(a) >= 3 else None
    return Retests(len(a), tau, float(np.median(np.abs(b / a - 1))), float(np.mean(off <= np.hypot(h[:, 0], h[:, 1]))))


def retest_sigma(first: Floats, second: Floats) -> float:
    """Standard deviation of one figure, relative, by what retests show: an upper 90 % bound for
    1.4826 median |second - first| / sqrt(2), as for a root mean square of so many differences (chi squared).

    What varies within a session is in it as well, so it is rather too wide.

    Args:
        first, second: Log latencies of the same networks, at least one.
    """
    from scipy.stats import chi2

    n = len(first)
    return float(1.4826 * np.median(np.abs(second - first)) / np.sqrt(2.0) * np.sqrt(n / chi2.ppf(0.1, n)))


def session_sigma(sessions: Floats, halves: Floats) -> float:
    """What intervals shall contain by `seen_sigma`: at least `LEAST_SIGMA`, as sessions of a calibration follow each
    other within seconds, and a machine that repeats itself for a minute does not do so for a day."""
    return max(LEAST_SIGMA, seen_sigma(sessions, halves))


def seen_sigma(sessions: Floats, halves: Floats) -> float:
    """Between-session standard deviation, relative, from the same networks in several fresh sessions.

    The variance between sessions less what the intervals within a session explain, pooled over networks:
    sigma^2 = mean_a [ var_s(value) - mean_s (half / 1.96)^2 ], but at least its own standard error where there is no
    difference between sessions, w^2 sqrt(2 / ((s - 1) n)) with w^2 the mean variance within: less than that cannot be
    told from nothing.

    Args:
        sessions: `s x n`, log latencies; s >= 2.
        halves: `s x n`, half widths within the sessions.
    """
    between = sessions.var(axis=0, ddof=1)
    within = np.mean((halves / 1.96) ** 2, axis=0)
    resolved = np.mean(within) * np.sqrt(2 / ((len(sessions) - 1) * sessions.shape[1]))
    return float(np.sqrt(max(resolved, np.mean(between - within))))
