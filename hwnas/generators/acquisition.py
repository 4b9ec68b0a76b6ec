"""What the evaluation of an architecture is worth: expected hypervolume improvement, and chances to meet budgets.

Losses of a candidate are independent normals here. All functions work on a whole pool at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from hwnas.core import pareto

Floats = NDArray[np.float64]

_FRONT_CAP = {1: 10_000, 2: 10_000, 3: 16}  # front points kept, by number of objectives
_FRONT_CAP_ABOVE = 8
_SQRT_2_PI = float(np.sqrt(2 * np.pi))


def expected_excess(bound: Floats | float, mean: Floats, std: Floats) -> Floats:
    """E[max(bound - Y, 0)] of Y ~ N(mean, std^2); with the best value as bound, expected improvement
    (Jones et al. 1998). Shapes broadcast."""
    z = (bound - mean) / std
    return np.asarray((bound - mean) * ndtr(z) + std * np.exp(-0.5 * z * z) / _SQRT_2_PI)


def expected_hypervolume_improvement(front: Floats, reference: Floats, mean: Floats, std: Floats) -> Floats:
    """Expected growth of the volume that a front dominates up to a reference point, exactly.

    The first objective cuts what is not dominated into strips between front points. In strip i only the points to
    its left count, and the expected length of the part that a candidate dominates is the difference of
    `expected_excess` at the strip's ends: EHVI_m = sum_i length_i EHVI_{m-1}(front points left of strip i). For one
    objective this is expected improvement, for two the known closed form (Emmerich et al. 2011).

    Args:
        front: `k x m`; dominated points and those beyond the reference change nothing. From three objectives on only
            the 16 (8 from four on) least crowded points count, as the number of strips grows like k^(m-1).
        reference: `m`.
        mean: `n x m`.
        std: `n x m`, above 0.

    Returns:
        `n` volumes, in the product of the losses' units.
    """
    m = len(reference)
    front = front[(front < reference).all(axis=1)]
    front = front[pareto.non_dominated(front)] if len(front) else front
    cap = _FRONT_CAP.get(m, _FRONT_CAP_ABOVE)
    if len(front) > cap:
        front = front[np.argsort(-pareto.crowding_distance(front), kind="stable")[:cap]]
    return np.maximum(_improvement(front, reference, mean, std), 0.0)


def chance_below(bound: float, mean: Floats, std: Floats) -> Floats:
    """`n` probabilities that a normal value does not exceed the bound."""
    return np.asarray(ndtr((bound - mean) / std))


def _improvement(front: Floats, reference: Floats, mean: Floats, std: Floats) -> Floats:
    if len(reference) == 1:
        return expected_excess(min(reference[0], *front[:, 0], np.inf), mean[:, 0], std[:, 0])
    front = front[np.lexsort(front.T[::-1])]
    ends = np.append(front[:, 0], reference[0])
    lengths = np.diff(expected_excess(ends, mean[:, [0]], std[:, [0]]), axis=1, prepend=0.0)  # n x (k + 1)
    if len(reference) == 2:
        heights = np.minimum.accumulate(np.append(reference[1], front[:, 1]))
        return np.asarray((lengths * expected_excess(heights, mean[:, [1]], std[:, [1]])).sum(axis=1))
    total = np.zeros(len(mean))
    for i in range(len(ends)):
        total += lengths[:, i] * _improvement(front[:i, 1:], reference[1:], mean[:, 1:], std[:, 1:])
    return total
