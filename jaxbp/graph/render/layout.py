"""The layout of a graph's boxes on a page: in layers, from the arguments down to the output.

After Sugiyama, Tagawa and Toda (1981): one layer for each depth, a joint where an edge passes a
layer, layers ordered by the mean place of neighbours so that few edges cross, then straightened.
"""

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

_GAP, _LAYER = 20, 104  # between boxes, and from layer to layer
_SWEEPS = 12


class Layout(NamedTuple):
    """The centres of the boxes, the courses of the edges, and the size of the whole, in pixels."""

    centres: list[tuple[float, float]]
    courses: list[list[tuple[float, float]]]  # the points of each edge, from parent to child
    width: float
    height: float


def layout(widths: Sequence[float], edges: Sequence[tuple[int, int]]) -> Layout:
    """Place boxes of these widths; an edge is (parent, child), the parent before the child."""
    chains, layer_of = _layered(len(widths), edges)
    sizes = [*widths, *[0.0] * (len(layer_of) - len(widths))]
    above, below = defaultdict(list), defaultdict(list)
    for chain in chains:
        for upper, lower in pairwise(chain):
            below[upper].append(lower)
            above[lower].append(upper)
    layers: list[list[int]] = [[] for _ in range(max(layer_of, default=-1) + 1)]
    for item, layer in enumerate(layer_of):
        layers[layer].append(item)
    places = _places(layers, sizes, above, below)
    left = min((places[i] - sizes[i] / 2 for i in range(len(sizes))), default=0) - _GAP
    right = max((places[i] + sizes[i] / 2 for i in range(len(sizes))), default=0) + _GAP
    points = [(places[i] - left, (layer_of[i] + 0.5) * _LAYER) for i in range(len(sizes))]
    return Layout(
        points[: len(widths)],
        [[points[item] for item in chain] for chain in chains],
        right - left,
        len(layers) * _LAYER,
    )


def _layered(count: int, edges: Sequence[tuple[int, int]]) -> tuple[list[list[int]], list[int]]:
    """Each edge as a chain of items, boxes and joints, one a layer; and the layer of each item."""
    layer_of = [0] * count
    for parent, child in sorted(edges, key=lambda edge: edge[1]):
        layer_of[child] = max(layer_of[child], layer_of[parent] + 1)
    children = defaultdict(list)
    for parent, child in edges:
        children[parent].append(child)
    made = {child for _, child in edges}
    for item in range(count):
        if item not in made and children[item]:  # an argument stands just above its first use
            layer_of[item] = min(layer_of[child] for child in children[item]) - 1
    chains = []
    for parent, child in edges:
        joints = range(layer_of[parent] + 1, layer_of[child])
        chains.append([parent, *range(len(layer_of), len(layer_of) + len(joints)), child])
        layer_of.extend(joints)
    return chains, layer_of


def _places(
    layers: list[list[int]],
    sizes: Sequence[float],
    above: dict[int, list[int]],
    below: dict[int, list[int]],
) -> dict[int, float]:
    """The place of each item along its layer, after sweeps down and up."""
    places: dict[int, float] = {}
    for layer in layers:
        _settle(layer, dict.fromkeys(layer, 0.0), sizes, places)
    best, fewest = dict(places), count_crossings(layers, places, below)
    for sweep in range(_SWEEPS):
        downwards = sweep % 2 == 0
        for layer in layers if downwards else reversed(layers):
            neighbours = above if downwards else below
            wanted = {item: _mean(places, neighbours[item], places[item]) for item in layer}
            layer.sort(key=wanted.__getitem__)
            _settle(layer, wanted, sizes, places)
        crossings = count_crossings(layers, places, below)
        if crossings <= fewest:
            best, fewest = dict(places), crossings
    return best


def _settle(
    layer: list[int], wanted: dict[int, float], sizes: Sequence[float], places: dict[int, float]
) -> None:
    """Place a layer's items in their order, apart, and as near as may be to the places wanted."""
    position, shifts = -1e9, []
    for previous, item in zip([None, *layer], layer, strict=False):
        apart = 0 if previous is None else (sizes[previous] + sizes[item]) / 2 + _GAP
        position = max(wanted[item], position + apart)
        places[item] = position
        shifts.append(wanted[item] - position)
    shift = sum(shifts) / max(len(shifts), 1)
    for item in layer:
        places[item] += shift


def _mean(places: dict[int, float], neighbours: Sequence[int], otherwise: float) -> float:
    return sum(places[n] for n in neighbours) / len(neighbours) if neighbours else otherwise


def count_crossings(
    layers: Sequence[Sequence[int]], places: dict[int, float], below: dict[int, list[int]]
) -> int:
    """How many pairs of edges cross: from left to right above, those out of order below."""
    count = 0
    for layer in layers:
        ends = sorted((places[upper], places[lower]) for upper in layer for lower in below[upper])
        before: list[float] = []  # the lower ends so far, in order
        for _, lower in ends:
            count += len(before) - bisect_right(before, lower)
            insort(before, lower)
    return count
