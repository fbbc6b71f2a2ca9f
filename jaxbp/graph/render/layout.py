"""The layout of a graph's boxes on a page: in layers, from the arguments down to the output.

After Sugiyama, Tagawa and Toda (1981): a layer for each depth, and between two layers a band for
the labels of edges.  An edge has a joint in each band and each layer that it passes; the items of a
rank, boxes, joints and labels, are ordered by the mean place of their neighbours, so that few edges
cross.  Between ranks an edge curves, and within a rank it runs straight down, so that it meets no
box and no label.  An edge that passes many layers runs beside them all: time stays about linear.
"""

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

_GAP, _CURVE, _LABEL = 20.0, 22.0, 18.0  # between boxes, from rank to rank, height of a label
_PORT, _LANE, _MOST_LANES = 14.0, 10.0, 12  # between the ends of edges at a box, and beside all
_HEAD = 9.0  # of an arrow, which is straight
_MOST_LAYERS = 6  # that an edge passes between boxes
_SWEEPS, _PATIENCE = 12, 4  # at most, and without fewer crossings
_STRAIGHTENINGS = 6


class Run(NamedTuple):
    """Where an edge runs straight down: within a rank."""

    x: float
    top: float
    bottom: float


class Layout(NamedTuple):
    """The centres of the boxes, the courses of the edges, and the size of the whole, in pixels."""

    centres: list[tuple[float, float]]
    courses: list[list[Run]]  # of each edge, from parent to child, with a curve between two runs
    labels: list[tuple[float, float]]  # where the text of each edge's label begins
    width: float
    height: float


def layout(
    widths: Sequence[float],
    edges: Sequence[tuple[int, int]],
    heights: Sequence[float] = (),
    labels: Sequence[float] = (),
) -> Layout:
    """Place boxes and the edges between them.

    widths: of the boxes.
    edges: (parent, child), positions of boxes, the parent before the child.
    heights: of the boxes; 40 each unless given.
    labels: the widths of the edges' labels, 0 for none; no labels unless given.
    """
    heights, labels = heights or [40.0] * len(widths), labels or [0.0] * len(edges)
    rank_of = [2 * layer for layer in _layers(len(widths), edges)]
    sides, chains = [(width / 2, width / 2) for width in widths], []  # to the left and right of x
    leaving: dict[int, int] = {}  # the joint of a parent's edges that run beside all
    for (parent, child), label in zip(edges, labels, strict=True):
        passed, start = list(range(rank_of[parent] + 1, rank_of[child])), [parent]
        if len(passed) > 2 * _MOST_LAYERS:
            start.append(leaving.setdefault(parent, len(rank_of)))
            passed = [passed[-1]] if start[1] < len(rank_of) else [passed[0], passed[-1]]
        joints = range(len(rank_of), len(rank_of) + len(passed))
        chains.append([*dict.fromkeys((*start, *joints)), child])
        rank_of += passed
        sides += [*[(0.0, 0.0)] * (len(passed) - 1), (0.0, label)]
    ranks: list[list[int]] = [[] for _ in range(max(rank_of, default=-1) + 1)]
    for item, rank in enumerate(rank_of):
        ranks[rank].append(item)
    above, below = defaultdict(list), defaultdict(list)
    links = dict.fromkeys(link for chain in chains for link in pairwise(chain))
    for upper, lower in links:
        if rank_of[lower] == rank_of[upper] + 1:
            below[upper].append(lower)
            above[lower].append(upper)
    places = _places(ranks, sides, above, below)
    ends = _ports([(chain[-1], chain[-2]) for chain in chains], places, widths)
    for band in ranks[1::2]:  # straight down to where an edge ends, as far as there is room
        wanted = {
            joint: ends.get((lower, joint), places[lower])
            for joint in band
            for lower in below[joint] or [joint]
        }
        _settle(band, wanted, sides, places)
    left = min((places[i] - side for i, (side, _) in enumerate(sides)), default=0) - _GAP
    right = max((places[i] + side for i, (_, side) in enumerate(sides)), default=0) + _GAP
    x = {item: place - left for item, place in places.items()}
    tall = [*heights, *(_LABEL * bool(label) for _, label in sides[len(widths) :])]
    extents = [max((tall[item] for item in items), default=0) for items in ranks]
    tops = list(accumulate((extent + _CURVE for extent in extents), initial=_GAP))
    lanes = _lanes(chains, rank_of)
    starts = _ports([(chain[0], chain[1]) for chain in chains], x, widths)
    bottoms = [top + extent for top, extent in zip(tops, extents, strict=False)]
    courses = []
    for chain, lane in zip(chains, lanes, strict=True):
        course = [Run(x[i], tops[rank_of[i]], bottoms[rank_of[i]]) for i in chain]
        middles = [(run.top + run.bottom) / 2 for run in (course[0], course[-1])]
        begin, end = middles[0] + heights[chain[0]] / 2, middles[1] - heights[chain[-1]] / 2
        course[0] = course[0]._replace(x=starts[chain[0], chain[1]], top=begin)
        top = min(course[-1].top, end - _HEAD)
        course[-1] = Run(ends[chain[-1], chain[-2]] - left, top, end)
        if lane is not None:
            beside = right - left + lane * _LANE
            course.insert(2, Run(beside, course[1].bottom + _CURVE, course[2].top - _CURVE))
        courses.append(course)
    return Layout(
        [(x[i], (tops[rank_of[i]] + bottoms[rank_of[i]]) / 2) for i in range(len(widths))],
        courses,
        [(x[chain[-2]] + 5, tops[rank_of[chain[-2]]] + _LABEL / 2) for chain in chains],
        right - left + _LANE * (1 + max((lane for lane in lanes if lane is not None), default=-1)),
        tops[-1] - _CURVE + _GAP,
    )


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The layer of each box: below its parents, and an argument's just above its first use."""
    layer_of = [0] * count
    children = defaultdict(list)
    for parent, child in sorted(edges, key=lambda edge: edge[1]):
        layer_of[child] = max(layer_of[child], layer_of[parent] + 1)
        children[parent].append(child)
    made = {child for _, child in edges}
    for item in range(count):
        if item not in made and children[item]:
            layer_of[item] = min(layer_of[child] for child in children[item]) - 1
    return layer_of


def _lanes(chains: Sequence[Sequence[int]], rank_of: Sequence[int]) -> list[int | None]:
    """The lane of each edge that runs beside the layers, the same for all edges of a parent."""
    lane_of: dict[int, int] = {}
    lanes: list[int | None] = []
    for chain in chains:
        beside = any(rank_of[lower] - rank_of[upper] > 1 for upper, lower in pairwise(chain))
        if beside:
            lane_of.setdefault(chain[0], len(lane_of) % _MOST_LANES)
        lanes.append(lane_of[chain[0]] if beside else None)
    return lanes


def _ports(
    pairs: Sequence[tuple[int, int]], x: Mapping[int, float], widths: Sequence[float]
) -> dict[tuple[int, int], float]:
    """Where edges leave a box, in the order of the joints they lead to; a pair is (box, joint)."""
    joints = defaultdict(list)
    for box, joint in dict.fromkeys(pairs):
        joints[box].append(joint)
    ports = {}
    for box, of_box in joints.items():
        apart = min(_PORT, (widths[box] - _PORT) / len(of_box))
        for index, joint in enumerate(sorted(of_box, key=x.__getitem__)):
            ports[box, joint] = x[box] + (index - (len(of_box) - 1) / 2) * apart
    return ports


def _places(
    ranks: list[list[int]],
    sides: Sequence[tuple[float, float]],
    above: dict[int, list[int]],
    below: dict[int, list[int]],
) -> dict[int, float]:
    """The place of each item along its rank, after sweeps down and up."""
    places: dict[int, float] = {}
    for rank in ranks:
        _settle(rank, dict.fromkeys(rank, 0.0), sides, places)
    best, fewest, since = dict(places), count_crossings(ranks, places, below), 0
    for sweep in range(_SWEEPS):
        downwards = sweep % 2 == 0
        for rank in ranks if downwards else reversed(ranks):
            neighbours = above if downwards else below
            wanted = {item: _mean(places, neighbours[item], places[item]) for item in rank}
            rank.sort(key=wanted.__getitem__)
            _settle(rank, wanted, sides, places)
        crossings = count_crossings(ranks, places, below)
        since = 0 if crossings < fewest else since + 1
        if crossings <= fewest:
            best, fewest = dict(places), crossings
        if since == _PATIENCE:
            break
    for rank in ranks:
        rank.sort(key=best.__getitem__)
    for sweep in range(_STRAIGHTENINGS):  # in this order, between the neighbours of both sides
        for rank in ranks if sweep % 2 else reversed(ranks):
            wanted = {item: _mean(best, above[item] + below[item], best[item]) for item in rank}
            _settle(rank, wanted, sides, best)
    return best


def _settle(
    rank: list[int],
    wanted: dict[int, float],
    sides: Sequence[tuple[float, float]],
    places: dict[int, float],
) -> None:
    """Place a rank's items in their order, apart, and in least squares where they are wanted.

    Less what is to the left of each item this is isotonic regression, by pooling adjacent violators
    (Ayer and others 1955): neighbours that would overlap become one block, at its items' mean.
    """
    apart = [sides[a][1] + sides[b][0] + _GAP for a, b in pairwise(rank)]
    offsets = list(accumulate(apart, initial=0.0))
    blocks: list[tuple[float, int]] = []  # the sum and the number of its items
    for item, offset in zip(rank, offsets, strict=False):
        total, count = wanted[item] - offset, 1
        while blocks and blocks[-1][0] * count >= total * blocks[-1][1]:
            more, others = blocks.pop()
            total, count = total + more, count + others
        blocks.append((total, count))
    means = (total / count for total, count in blocks for _ in range(count))
    for item, offset, mean in zip(rank, offsets, means, strict=False):
        places[item] = mean + offset


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
