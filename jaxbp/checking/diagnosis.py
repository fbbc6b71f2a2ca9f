"""The diagnosis: where a failing gradient is wrong, and which simple mistake would look like it.

Every mistake that can be written as a change of the claimed leaf, a factor, a transpose, another
leaf's gradient, is compared with the slopes measured along all directions: the first that explains
them all is the diagnosis.  If only some entries are wrong, they are found by measuring entries.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from jaxbp.checking.black_box import BlackBox
from jaxbp.checking.comparing import Entry, norm
from jaxbp.checking.finite_differences import (
    EVALUATIONS_OF_A_WINDOW,
    RATIO,
    as_matrix,
    extrapolate,
    sample_windows,
)
from jaxbp.checking.measurement import Measurement
from jaxbp.checking.verdicts import agreement
from jaxbp.text import significant

EXPLAINED = 1e-4  # of the slopes' size may be left over when a mistake is said to explain them
_LISTED = 3  # wrong entries
_BLOCKS = 24  # into which the rows or columns of a large leaf are divided at a time
_SAMPLED = 32  # entries of a large leaf
_DETAILED = 16  # leaves whose entries are measured
_CUT_SHORT = "the search for wrong entries was cut short: max_evaluations= may allow more calls"

Axis = tuple[int, int]  # of a leaf: its index, and 0 for rows or 1 for columns
Span = tuple[int, int]  # [start, stop)
Window = tuple[int, ...]  # a leaf's index, [row, row'), [column, column')


@dataclass(frozen=True)
class FailedGradient:
    """A gradient some of whose leaves failed, and all that may explain it."""

    claimed: Sequence[np.ndarray]  # the gradient, leaf by leaf
    paths: Sequence[str]
    measurement: Measurement
    lengths: frozenset[int]  # of first axes: one of them is the number of examples
    tolerance: float  # of the slopes' size may be left over when a mistake is said to explain them


class Diagnosis(NamedTuple):
    """The mistake that a failing leaf looks like, and the entries that are furthest off."""

    mistake: str  # empty if nothing simple explains it
    worst: tuple[Entry, ...]  # the entries that are furthest off
    notes: tuple[str, ...] = ()  # what was not searched


def diagnose(
    gradient: FailedGradient, failed: Sequence[int], coordinates: int
) -> dict[int, Diagnosis]:
    """The diagnosis of each leaf that failed, by its index; coordinates is how many entries of a
    leaf may be measured one by one."""
    finite = [index for index in failed if np.isfinite(gradient.claimed[index]).all()]
    searched, affordable = _affordable(gradient, finite[:_DETAILED], coordinates)
    entries = _measured_entries(gradient, searched, affordable)
    notes = () if (searched, affordable) == (finite[:_DETAILED], coordinates) else (_CUT_SHORT,)
    diagnoses = {index: _not_finite(gradient.claimed[index]) for index in failed}
    for index in finite:
        mistake = next((name for name, explains in _mistakes(gradient, index) if explains), "")
        if index in entries:
            mistake = mistake or _pattern(entries[index])
            diagnoses[index] = Diagnosis(mistake, _furthest(entries[index]), notes)
        else:
            diagnoses[index] = Diagnosis(mistake, (), notes)
    return diagnoses


def _affordable(
    gradient: FailedGradient, indices: Sequence[int], coordinates: int
) -> tuple[Sequence[int], int]:
    """The leaves that are searched, and how many entries of each may be measured: of a black box no
    more than its remaining calls allow."""
    f = gradient.measurement.arithmetic.problem.objective
    sizes = [gradient.claimed[index].size for index in indices]
    if not isinstance(f, BlackBox) or not indices:
        return indices, coordinates
    left = (f.left - 1) // EVALUATIONS_OF_A_WINDOW
    if sum(_windows(size, coordinates) for size in sizes) <= left:
        return indices, coordinates
    coordinates = max(1, min(coordinates, left // len(indices)))
    totals = np.cumsum([_windows(size, coordinates) for size in sizes]).tolist()
    return [i for i, total in zip(indices, totals, strict=True) if total <= left], coordinates


def _windows(size: int, coordinates: int) -> int:
    """How many windows of a leaf of that size are measured at most."""
    if size <= coordinates:
        return size
    halvings = int(np.ceil(np.log(size) / np.log(_BLOCKS)))
    return 2 * _BLOCKS * halvings + _LISTED**2 + _SAMPLED


def _not_finite(claimed: np.ndarray) -> Diagnosis:
    bad = np.argwhere(~np.isfinite(claimed))
    listed = ", ".join(str(list(map(int, place))) for place in bad[:_LISTED])
    more = ", ..." if len(bad) > _LISTED else ""
    return Diagnosis(f"not finite at {len(bad)} of {claimed.size} entries: {listed}{more}", ())


# Mistakes that change the whole leaf


def _mistakes(gradient: FailedGradient, index: int) -> Iterator[tuple[str, bool]]:
    """Mistakes that may have been made in a leaf, each with whether it explains the slopes."""
    claimed = gradient.claimed[index]
    if not claimed.any():
        yield "zero everywhere", True
        return
    slopes = _LeafSlopes(gradient, index)
    yield _factor(slopes, gradient)
    if claimed.ndim == 2:
        rows, columns = claimed.shape
        if rows == columns:
            yield "transposed", slopes.fit(claimed.T)
        elif rows > 1 and columns > 1:
            yield "transposed, then reshaped", slopes.fit(claimed.reshape(columns, rows).T)
    for path, other in zip(gradient.paths, gradient.claimed, strict=True):
        if other is not claimed and other.shape == claimed.shape and other.any():
            yield f"permuted: what is claimed for {path} belongs here", slopes.fit(other)
    yield _penalty(slopes, np.asarray(gradient.measurement.arithmetic.problem.leaves[index]))
    for axis in range(claimed.ndim):
        if claimed.shape[axis] > 1:
            yield f"reversed along axis {axis}", slopes.fit(np.flip(claimed, axis))
            for by in (1, -1):
                yield f"shifted by one along axis {axis}", slopes.fit(np.roll(claimed, by, axis))


class _LeafSlopes:
    """The claimed and the measured slopes of one leaf, for a changed claim to explain."""

    def __init__(self, gradient: FailedGradient, index: int) -> None:
        directions = gradient.measurement.directions[index]
        self.directions = directions.reshape(len(directions), -1)
        measured = gradient.measurement.slopes.take(gradient.measurement.rows(index))
        self.measured = measured.value
        self.claimed = self.of(gradient.claimed[index])
        size = norm(measured.value) / np.sqrt(len(measured.value))
        left = np.minimum(gradient.tolerance * size, np.abs(self.claimed - self.measured) / 10)
        self.allowed = measured.error + left

    def of(self, values: np.ndarray) -> np.ndarray:
        """The slopes of a gradient of this leaf."""
        return np.asarray(self.directions @ values.ravel())

    def equal(self, slopes: np.ndarray) -> bool:
        """Whether these are the measured slopes.  One direction alone explains nothing."""
        near = np.abs(slopes - self.measured) <= self.allowed
        return len(slopes) > 1 and bool(near.all())

    def fit(self, values: np.ndarray) -> bool:
        """Whether the measured slopes are those of this gradient."""
        return self.equal(self.of(values))


def _factor(slopes: _LeafSlopes, gradient: FailedGradient) -> tuple[str, bool]:
    """The claim is a factor times the measured gradient."""
    overlap = float(slopes.claimed @ slopes.measured)
    if not overlap:
        return "", False
    factor = float(slopes.claimed @ slopes.claimed) / overlap
    name = f"off by a factor of {_factor_name(factor, gradient.lengths, gradient.tolerance)}"
    return name, slopes.equal(slopes.claimed / factor)


def _factor_name(factor: float, lengths: frozenset[int], tolerance: float) -> str:
    """2, 1/2, -1, or the length of an axis; else the number itself."""
    for size in sorted(lengths - {0, 1, 2, 3, 4}):
        for sign in (1, -1):
            if np.isclose(factor, sign * size, rtol=tolerance):
                return f"{sign * size} (the length of an axis here)"
            if np.isclose(factor, sign / size, rtol=tolerance):
                return f"{'-' if sign < 0 else ''}1/{size} (the length of an axis here)"
    near = Fraction(factor).limit_denominator(8)
    if near not in (0, 1) and np.isclose(factor, float(near), rtol=tolerance):
        return str(near)
    return significant(factor, 5)


def _penalty(slopes: _LeafSlopes, leaf: np.ndarray) -> tuple[str, bool]:
    """true = claimed + λ x, as when an L2 penalty is forgotten, doubled or misplaced."""
    own = slopes.of(leaf.astype(np.float64))
    if not own.any():
        return "", False
    strength = float(own @ (slopes.measured - slopes.claimed) / (own @ own))
    verb = "missing" if strength > 0 else "too much"
    times = significant(abs(strength), 4)
    name = f"{times} times the argument itself is {verb}, as of an L2 penalty"
    return name, slopes.equal(slopes.claimed + strength * own)


# Mistakes in some entries


class _Entries(NamedTuple):
    """N entries of a leaf that were measured one by one."""

    shape: tuple[int, ...]  # of the leaf
    complete: bool  # whether these are all its entries
    place: np.ndarray  # (N, 2) row and column in the leaf as a matrix
    claimed: np.ndarray  # (N,)
    measured: np.ndarray
    error: np.ndarray
    wrong: np.ndarray  # whether each is wrong for certain
    tolerance: float  # the gradient's


def _measured_entries(
    gradient: FailedGradient, indices: Sequence[int], coordinates: int
) -> dict[int, _Entries]:
    """All entries of each leaf or, if they are too many, a sample and those most likely wrong."""
    complete = {i: gradient.claimed[i].size <= coordinates for i in indices}
    worst = _worst_lines(gradient, [i for i in indices if not complete[i]])
    places = {
        i: _every_place(gradient, i) if complete[i] else _likeliest_places(gradient, i, worst[i])
        for i in indices
    }
    windows = [(i, row, row + 1, column, column + 1) for i in indices for row, column in places[i]]
    claimed, measured, error, wrong = _measure(gradient, windows)
    entries, start = {}, 0
    for i in indices:
        own = slice(start, start + len(places[i]))
        start = own.stop
        entries[i] = _Entries(
            shape=gradient.claimed[i].shape,
            complete=complete[i],
            place=places[i],
            claimed=claimed[own],
            measured=measured[own],
            error=error[own],
            wrong=wrong[own],
            tolerance=gradient.tolerance,
        )
    return entries


def _measure(gradient: FailedGradient, windows: Sequence[Window]) -> tuple[np.ndarray, ...]:
    """Along the windows' unit directions, all signs +1: claimed slopes, measured ones, their error
    bars, and which of the claimed ones are wrong for certain."""
    if not windows:
        return (np.empty(0),) * 4
    measurement = gradient.measurement
    rows = [measurement.rows(index) for index in range(len(gradient.claimed))]
    steps = [float(np.median(measurement.slopes.step[own])) * RATIO**2 for own in rows]
    reach = np.array([step * size for step, size in zip(steps, measurement.sizes, strict=True)])
    sigma = np.array([np.max(np.min(measurement.samples.sigma[own], axis=1)) for own in rows])
    which = np.array(windows)[:, 0]
    problem = measurement.arithmetic.problem
    samples = sample_windows(
        problem.objective,
        problem.leaves,
        problem.held,
        tuple(reach),
        np.array(windows),
        eps=measurement.arithmetic.eps,
        sigma=sigma[which],
        chunk=measurement.chunk,
    )
    claimed = np.array([_claimed_along(gradient, window) for window in windows])
    measured = extrapolate(samples)
    scale = norm(measured.value) / np.sqrt(len(windows))
    wrong = agreement(claimed * reach[which], samples, measured, scale, gradient.tolerance).failed
    return claimed, measured.value / reach[which], measured.error / reach[which], wrong


def _every_place(gradient: FailedGradient, index: int) -> np.ndarray:
    columns = as_matrix(gradient.claimed[index].shape)[1]
    return np.stack(np.divmod(np.arange(gradient.claimed[index].size), columns), axis=1)


def _likeliest_places(gradient: FailedGradient, index: int, worst: list[list[int]]) -> np.ndarray:
    """The crossings of the worst rows and columns, and a random sample."""
    rows, columns = as_matrix(gradient.claimed[index].shape)
    crossings = [(row, column) for row in worst[0] for column in worst[1]]
    sample = np.random.default_rng(0).integers(0, (rows, columns), size=(_SAMPLED, 2))
    return np.unique(np.concatenate([np.array(crossings), sample]), axis=0)


def _worst_lines(gradient: FailedGradient, indices: Sequence[int]) -> dict[int, list[list[int]]]:
    """The rows and the columns of each leaf that are furthest off: those of the worst block of
    them, and of the worst block in that, until a block is one row or column."""
    axes = [(i, axis) for i in indices for axis in (0, 1)]
    worst = {(i, axis): (0, as_matrix(gradient.claimed[i].shape)[axis]) for i, axis in axes}
    ranked: dict[Axis, list[Span]] = {}
    while unfinished := [key for key in axes if key not in ranked]:
        found = _by_excess(gradient, {key: _blocks(*worst[key]) for key in unfinished})
        worst |= {key: spans[0] for key, spans in found.items()}
        ranked |= {key: own for key, own in found.items() if own[0][1] - own[0][0] == 1}
    first = {key: [start for start, _ in spans[:_LISTED]] for key, spans in ranked.items()}
    return {i: [first[i, 0], first[i, 1]] for i in indices}


def _blocks(start: int, stop: int) -> list[Span]:
    edges = np.unique(np.linspace(start, stop, min(_BLOCKS, stop - start) + 1).astype(int))
    return list(pairwise(map(int, edges)))


def _by_excess(gradient: FailedGradient, spans: dict[Axis, list[Span]]) -> dict[Axis, list[Span]]:
    """The spans of rows or columns, those first along which the claim is furthest off."""
    windows = [_window(gradient, axis, span) for axis, own in spans.items() for span in own]
    claimed, measured, error, wrong = _measure(gradient, windows)
    excess = np.where(wrong, np.abs(claimed - measured) - error, 0.0).tolist()
    ranked = {axis: [(excess.pop(0), span) for span in own] for axis, own in spans.items()}
    return {axis: [span for _, span in sorted(own, reverse=True)] for axis, own in ranked.items()}


def _window(gradient: FailedGradient, axis: Axis, span: Span) -> Window:
    index, along_columns = axis
    rows, columns = as_matrix(gradient.claimed[index].shape)
    return (index, 0, rows, *span) if along_columns else (index, *span, 0, columns)


def _claimed_along(gradient: FailedGradient, window: Window) -> float:
    index, top, bottom, left, right = window
    leaf = gradient.claimed[index]
    part = leaf.reshape(as_matrix(leaf.shape))[top:bottom, left:right]
    return float(part.sum() / np.sqrt(part.size))


def _furthest(entries: _Entries) -> tuple[Entry, ...]:
    gap = np.where(entries.wrong, np.abs(entries.claimed - entries.measured), 0.0)
    order = [int(i) for i in np.argsort(-gap)[:_LISTED] if gap[i] > 0]
    flat = entries.place @ (as_matrix(entries.shape)[1], 1)
    return tuple(
        Entry(
            place=tuple(map(int, np.unravel_index(flat[i], entries.shape))),
            claimed=float(entries.claimed[i]),
            expected=float(entries.measured[i]),
        )
        for i in order
    )


def _pattern(entries: _Entries) -> str:
    """The wrong entries in words: where they are, else in which way they are wrong."""
    if not entries.wrong.any():
        return ""
    if not entries.complete:
        return _pattern_of_sample(entries)
    return _place_of_error(entries) or _kind_of_error(entries)


def _place_of_error(entries: _Entries) -> str:
    """One entry, one row or one column."""
    rows, columns = (np.unique(entries.place[entries.wrong, axis]) for axis in (0, 1))
    height, width = as_matrix(entries.shape)
    if len(rows) == len(columns) == 1 < height * width:
        return "one entry is wrong, the others are right"
    if len(rows) == 1 < height:
        return f"row {rows[0]} is wrong, the others are right"
    if len(columns) == 1 < width:
        return f"column {columns[0]} is wrong, the others are right"
    return ""


def _kind_of_error(entries: _Entries) -> str:
    """At some of the entries zero, of the wrong sign, or without a slope."""
    wrong = entries.wrong
    claimed, measured, error = (
        values[wrong] for values in (entries.claimed, entries.measured, entries.error)
    )
    some = f"{wrong.sum()} of {len(wrong)} entries"
    if not claimed.any():
        return f"zero at {some}, the others are right"
    if np.all(np.abs(measured) <= error):
        return f"right only where the slope is 1: the slope is 0 at {some}, and one is claimed"
    if np.all(np.abs(claimed + measured) <= error + entries.tolerance * np.abs(measured)):
        return f"wrong sign at {some}"
    return _factor_by_line(entries) or ("" if wrong.all() else f"wrong at {some}")


def _pattern_of_sample(entries: _Entries) -> str:
    if entries.wrong.sum() == 1:
        return "one entry is wrong; the others that were measured are right"
    share = entries.wrong.sum() / len(entries.wrong)
    return "" if share > 0.9 else f"wrong at {entries.wrong.sum()} of {len(entries.wrong)} measured"


def _factor_by_line(entries: _Entries) -> str:
    """Each row, or each column, off by a factor of its own; if none is below 1, a slope h' ≤ 1 may
    be missing: by rows for a weight of shape (O, I), by columns for one of shape (I, O)."""
    shape = as_matrix(entries.shape)
    claimed, measured = entries.claimed.reshape(shape), entries.measured.reshape(shape)
    for line, ours, theirs in (("row", claimed, measured), ("column", claimed.T, measured.T)):
        with np.errstate(all="ignore"):
            factors = np.sum(ours * theirs, axis=1) / np.sum(theirs**2, axis=1)
        left = np.abs(ours - factors[:, None] * theirs)
        if ours.shape[1] > 1 and np.all(left <= entries.tolerance * np.abs(ours).max()):
            span = f"{significant(factors.min(), 3)} to {significant(factors.max(), 3)}"
            missing = factors.min() > 1 - entries.tolerance
            slope = ": a slope h'(a) is missing" if missing else ""
            return f"each {line} is off by a factor of its own, {span}{slope}"
    return ""


# All leaves together


def common_mistake(verdicts: Sequence[tuple[str, str, str]]) -> str:
    """The mistake common to the leaves that failed, from (path, verdict, diagnosis) of all leaves
    in the arguments' order, which is taken for that of the forward pass."""
    failed = [(path, diagnosis) for path, verdict, diagnosis in verdicts if verdict == "fail"]
    if not failed:
        return ""
    diagnoses = {diagnosis for _, diagnosis in failed}
    common = diagnoses.pop() if len(diagnoses) == 1 else ""
    paths, wrong = [path for path, _, _ in verdicts], [path for path, _ in failed]
    where = _where(paths, wrong)
    mistake = common or _suspicion(paths, wrong)
    if not mistake:
        return where if where.startswith("every") else ""
    return f"{where}: {mistake}" if where else mistake


def _where(paths: list[str], wrong: list[str]) -> str:
    """Every leaf, every bias, those up to one of them, or their paths."""
    right = [path for path in paths if path not in wrong]
    if len(paths) == 1:
        return ""
    if not right:
        return "every leaf"
    kinds = {_kind(path) for path in wrong}
    if len(wrong) > 1 and len(kinds) == 1 and not kinds & {_kind(path) for path in right}:
        return f"every {kinds.pop()}"
    if len(wrong) > 1 and _is_below(paths, wrong):
        return f"every leaf up to {sorted(wrong, key=_layer)[-1]}"
    return ", ".join(wrong)


def _kind(path: str) -> str:
    """The last word of a leaf's path, without a number: "weight" of [0].weight, "W" of ['W1']."""
    words: list[str] = re.findall(r"[^\W\d_]+", path)
    return words[-1] if words else path


def _layer(path: str) -> int:
    """The last number of a leaf's path, 1 of ['W1']; -1 where it has none."""
    return int((re.findall(r"\d+", path) or [-1])[-1])


def _is_below(paths: list[str], wrong: list[str]) -> bool:
    """Whether the wrong leaves, of several, are those of the first layers: by their numbers, as a
    dict's leaves come in the order of their names; by their order, where they have none."""
    if len({*map(_layer, paths)}) > 1:
        right = (path for path in paths if path not in wrong)
        return max(map(_layer, wrong)) < min(map(_layer, right))
    return wrong == paths[: len(wrong)]


def _suspicion(paths: list[str], wrong: list[str]) -> str:
    """Where to look first when the leaves fail in different ways."""
    if len(wrong) < 2:
        return ""
    if wrong == paths:
        return "look at the error at the output, and at the mean over examples"
    if _is_below(paths, wrong):
        return "right above; look at what is passed back to it, δ Wᵀ and the slope"
    return ""
