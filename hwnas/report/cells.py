"""A network's graph as a small inline SVG: layers from left to right, operations as labelled boxes."""

from __future__ import annotations

import re
from collections import defaultdict
from html import escape
from itertools import pairwise

import numpy as np

from hwnas.core.graph import ArchGraph

BOX, HEIGHT, GAP_X, GAP_Y, MARGIN = 62.0, 24.0, 24.0, 14.0, 4.0

# Okabe and Ito's colour-blind safe palette; the label names the operation, the colour only helps to see it
_KINDS = (
    (re.compile(r"input|output"), "#d9d9d9"),
    (re.compile(r"skip|identity"), "#ffffff"),
    (re.compile(r"pool"), "#f5d98b"),
    (re.compile(r"1x1"), "#a9d6f5"),
    (re.compile(r"3x3|conv"), "#5fb0e5"),
)
_OTHER = "#d9b3cb"

Point = tuple[float, float]


def cell_svg(graph: ArchGraph, label: str = "") -> str:
    """The drawing of a pruned graph as an `<svg>` element, without ids, scripts or outside references.

    Args:
        graph: What to draw, usually `ArchGraph.pruned()`.
        label: Text for screen readers; the operations in order when empty.
    """
    places, waypoints = layout(graph)
    width = max(x for x, _ in places) + BOX / 2 + MARGIN
    height = max([y for _, y in places] + [y for path in waypoints.values() for _, y in path]) + HEIGHT / 2 + MARGIN
    told = label or ", ".join(short(op) for op in graph.ops)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cell" role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="sans-serif" font-size="11">',
        f"<title>{escape(told)}</title>",
    ]
    parts += [_edge(places[s], places[t], waypoints.get((s, t), [])) for s, t in graph.edges]
    parts += [_node(op, place) for op, place in zip(graph.ops, places, strict=True)]
    if not graph.edges and graph.n > 1:
        x, y = (places[0][0] + places[-1][0]) / 2, places[0][1]
        parts.append(f'<text x="{x:.0f}" y="{y - 8:.0f}" text-anchor="middle" fill="#c0392b">no path</text>')
    return "".join([*parts, "</svg>"])


def short(op: str) -> str:
    """An operation's name as it fits into a box: "nor_conv_3x3" is "conv 3×3"."""
    plain = op.removeprefix("nor_").removeprefix("avg_").removesuffix("_connect").replace("_", " ")
    text = re.sub(r"(\d)x(\d)", r"\1×\2", plain)
    return text if len(text) <= 12 else text[:11] + "…"


def layout(graph: ArchGraph) -> tuple[list[Point], dict[tuple[int, int], list[Point]]]:
    """Centres of the nodes, and the points that edges longer than one layer pass through.

    Layers are longest distances from the input. A long edge gets a lane of its own in each layer that it
    crosses (Sugiyama et al. 1981), so that no edge is drawn through a box. Lanes are ordered by the mean place
    of their neighbours in a few sweeps.
    """
    depth = _depths(graph)
    lanes: dict[int, list[object]] = defaultdict(list)
    for node in range(graph.n):
        lanes[depth[node]].append(node)
    links: dict[object, list[object]] = defaultdict(list)
    for source, target in graph.edges:
        chain: list[object] = [source]
        for layer in range(depth[source] + 1, depth[target]):
            chain.append((source, target, layer))
            lanes[layer].append((source, target, layer))
        chain.append(target)
        for one, other in pairwise(chain):
            links[one].append(other)
            links[other].append(one)
    _untangle(lanes, links)
    tallest = max(len(lane) for lane in lanes.values())
    gap = GAP_X if graph.edges else 3 * GAP_X
    places: dict[object, Point] = {}
    for layer, lane in lanes.items():
        for row, item in enumerate(lane):
            y = MARGIN + HEIGHT / 2 + (row + (tallest - len(lane)) / 2) * (HEIGHT + GAP_Y)
            places[item] = (MARGIN + BOX / 2 + layer * (BOX + gap), y)
    nodes = [places[node] for node in range(graph.n)]
    through = {(s, t): [places[s, t, layer] for layer in range(depth[s] + 1, depth[t])] for s, t in graph.edges}
    return nodes, through


def _depths(graph: ArchGraph) -> list[int]:
    depth = [0] * graph.n
    for source, target in graph.edges:  # sorted by source: a source's depth is final when it is read
        depth[target] = max(depth[target], depth[source] + 1)
    if graph.n > 1:
        depth[-1] = max(1, *depth)
    return depth


def _untangle(lanes: dict[int, list[object]], links: dict[object, list[object]], sweeps: int = 6) -> None:
    for _ in range(sweeps):
        for layer in sorted(lanes):
            # places are centred per layer, so that short layers pull long ones to the middle
            height = {item: row - len(lane) / 2 for lane in lanes.values() for row, item in enumerate(lane)}
            lanes[layer].sort(key=lambda item: float(np.mean([height[o] for o in links[item]] or [height[item]])))


def _edge(start: Point, end: Point, through: list[Point]) -> str:
    x0, y0 = start[0] + BOX / 2, start[1]
    stops = [*through, (end[0] - BOX / 2, end[1])]
    path = [f"M{x0:.0f} {y0:.0f}"]
    for x, y in stops:
        last = (x, y) == stops[-1]
        near = x if last else x - BOX / 2
        middle = (x0 + near) / 2
        path.append(f"C{middle:.0f} {y0:.0f} {middle:.0f} {y:.0f} {near:.0f} {y:.0f}")
        if not last:
            path.append(f"H{x + BOX / 2:.0f}")
        x0, y0 = (near, y) if last else (x + BOX / 2, y)
    tip = f"M{x0 - 5:.0f} {y0 - 3:.0f}L{x0:.0f} {y0:.0f}L{x0 - 5:.0f} {y0 + 3:.0f}"
    return f'<path d="{"".join(path)}{tip}" fill="none" stroke="#808080" stroke-width="1.4"/>'


def _node(op: str, place: Point) -> str:
    colour = next((fill for pattern, fill in _KINDS if pattern.search(op)), _OTHER)
    x, y = place
    size = ' font-size="9"' if len(short(op)) > 9 else ""
    return (
        f'<rect x="{x - BOX / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{BOX:.0f}" height="{HEIGHT:.0f}" rx="5" '
        f'fill="{colour}" stroke="#555"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" fill="#111"{size}>{escape(short(op))}</text>'
    )
