"""What the evaluation of an architecture is worth: expected hypervolume improvement, and chances to meet budgets.

Losses of a candidate are independent normals here. All functions work on a whole pool at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from hwnas.core import pareto

Floats = NDArray[np.float64]

_MANY_OBJECTIVES, _FRONT_CAP = 4, 8  # from so many objectives on, front points that are kept
_SQRT_2_PI = float(np.sqrt(2 * np.pi))


def expected_excess(bound: Floats | float, mean: Floats, std: Floats) -> Floats:
    """E[max(bound - Y, 0)] of Y ~ N(mean, std^2); with the best value as bound, expected improvement
    (Jones et al. 1998). Shapes broadcast."""
    z = (bound - mean) / std
    return np.asarray((bound - mean) * ndtr(z) + std * np.exp(-0.5 * z * z) / _SQRT_2_PI)


def expected_hypervolume_improvement(front: Floats, reference: Floats, mean: Floats, std: Floats) -> Floats:
    """Expected growth of the volume that a front dominates up to a reference point, exactly.

    What is not dominated is cut into boxes. Of a box the expected part that a candidate dominates is, as the losses
    are independent, the product over objectives of the differences of `expected_excess` at the box's ends. With two
    objectives the boxes are the strips between front points (Emmerich et al. 2011), with three there are at most
    2 k + 1 of them, see `boxes`. With more, the first objective cuts strips, in each of which the points to its left
    count: EHVI_m = sum_i length_i EHVI_{m-1}(front points left of strip i).

    Args:
        front: `k x m`; dominated points and those beyond the reference change nothing. From four objectives on only
            the 8 least crowded points count, as the number of boxes grows like k^(m-2).
        reference: `m`.
        mean: `n x m`.
        std: `n x m`, above 0.

    Returns:
        `n` volumes, in the product of the losses' units.
    """
    m = len(reference)
    front = front[(front < reference).all(axis=1)]
    front = front[pareto.non_dominated(front)] if len(front) else front
    if m >= _MANY_OBJECTIVES and len(front) > _FRONT_CAP:
        front = front[np.argsort(-pareto.crowding_distance(front), kind="stable")[:_FRONT_CAP]]
    return np.maximum(_improvement(front, reference, mean, std), 0.0)


def boxes(front: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """What no point of a front dominates up to a reference point, three objectives, as boxes without overlap.

    A plane moves along the first objective. What is free in it lies below a staircase over the other two, whose steps
    begin where a point is passed and end where a later one cuts them; each step that ends is a box.

    Args:
        front: `k x 3`, each below the reference; may hold dominated points.
        reference: `3`.

    Returns:
        Lower and upper corners, at most `2 k + 1 x 3` each; lower ones are -inf where a box has no end.
    """
    lower: list[tuple[float, float, float]] = []
    upper: list[tuple[float, float, float]] = []

    def close(start: float, left: float, right: float, top: float, end: float) -> None:
        if start < end:
            lower.append((start, left, -np.inf))
            upper.append((end, right, top))

    # where it began in the first objective, left and right end in the second, top in the third; tops fall to the right
    steps = [(-np.inf, -np.inf, float(reference[1]), float(reference[2]))]
    for x, y, z in front[np.lexsort(front.T[::-1])].tolist():
        kept = [step for step in steps if step[2] <= y or step[3] <= z]
        cut = [step for step in steps if step[2] > y and step[3] > z]
        if not cut:
            continue  # dominated by points that were passed
        for start, left, right, top in cut:
            close(start, left, right, top, x)
            if left < y:
                kept.append((x, left, y, top))
        kept.append((x, y, cut[-1][2], z))
        steps = sorted(kept, key=lambda step: step[1])
    for step in steps:
        close(*step, float(reference[0]))
    return np.array(lower).reshape(-1, 3), np.array(upper).reshape(-1, 3)


def _over_boxes(lower: Floats, upper: Floats, mean: Floats, std: Floats) -> Floats:
    """`n`: the sum over boxes of the product over objectives of expected lengths."""
    product = np.ones((len(mean), len(lower)))
    for j in range(lower.shape[1]):
        ends, places = np.unique(np.concatenate((lower[:, j], upper[:, j])), return_inverse=True)
        below = np.zeros((len(mean), len(ends)))
        known = np.isfinite(ends)  # nothing is expected below -inf
        below[:, known] = expected_excess(ends[known], mean[:, [j]], std[:, [j]])
        product *= below[:, places[len(lower) :]] - below[:, places[: len(lower)]]
    return np.asarray(product.sum(axis=1))


def chance_below(bound: float, mean: Floats, std: Floats) -> Floats:
    """`n` probabilities that a normal value does not exceed the bound."""
    return np.asarray(ndtr((bound - mean) / std))


def _improvement(front: Floats, reference: Floats, mean: Floats, std: Floats) -> Floats:
    if len(reference) == 1:
        return expected_excess(min(reference[0], *front[:, 0], np.inf), mean[:, 0], std[:, 0])
    if len(reference) == 3:
        return _over_boxes(*boxes(front, reference), mean, std)
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
