"""Symptoms: where a failing gradient is wrong, and what simple mistake would look like it.

Every mistake that can be written as a change of the claimed leaf, a factor, a transpose, another
leaf's gradient, is tried against the slopes measured along all directions: the first that explains
them all is the diagnosis.  What is wrong in some entries only is found by measuring entries.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from jaxbp.checking.comparing import Entry, norm
from jaxbp.checking.finite_differences import RATIO, as_matrix, climb_windows, slopes
from jaxbp.checking.measurement import Survey
from jaxbp.checking.verdicts import judge
from jaxbp.text import significant

_EXPLAINED = 1e-4  # of the slopes' size may be left over when a mistake is said to explain them
_WORST = 3  # entries are listed
_BLOCKS = 24  # rows or columns of a large leaf are measured in so many blocks first
_SAMPLED = 32  # entries of a large leaf
_DETAILED = 16  # leaves are looked into

Axis = tuple[int, int]  # of a leaf: its number, and 0 for rows or 1 for columns
Span = tuple[int, int]  # [start, stop)
Window = tuple[int, ...]  # leaf, [row, row'), [column, column')


class Scene(NamedTuple):
    """A gradient some of whose leaves failed, and all that may explain it."""

    claimed: Sequence[np.ndarray]  # the gradient, leaf by leaf
    paths: Sequence[str]
    survey: Survey
    lengths: frozenset[int]  # of first axes: one of them is the number of examples

    def leaf(self, number: int) -> np.ndarray:
        """The argument itself."""
        return np.asarray(self.survey.arena.problem.leaves[number], np.float64)


class Symptom(NamedTuple):
    """What is wrong with a leaf, and where."""

    diagnosis: str  # empty if nothing simple explains it
    worst: tuple[Entry, ...]  # the entries that are furthest off


def explain(scene: Scene, failed: Sequence[int], coordinates: int) -> dict[int, Symptom]:
    """Of each leaf that failed."""
    finite = [number for number in failed if np.isfinite(scene.claimed[number]).all()]
    entries = _measured_entries(scene, finite[:_DETAILED], coordinates)
    symptoms = {number: _not_finite(scene.claimed[number]) for number in failed}
    for number in finite:
        mistake = next((name for name, explains in _mistakes(scene, number) if explains), "")
        if number in entries:
            diagnosis = mistake or _pattern(entries[number])
            symptoms[number] = Symptom(diagnosis, _furthest(entries[number]))
        else:
            symptoms[number] = Symptom(mistake, ())
    return symptoms


def _not_finite(claimed: np.ndarray) -> Symptom:
    bad = np.argwhere(~np.isfinite(claimed))
    listed = ", ".join(str(list(map(int, index))) for index in bad[:_WORST])
    more = ", ..." if len(bad) > _WORST else ""
    return Symptom(f"not finite at {len(bad)} of {claimed.size} entries: {listed}{more}", ())


# Mistakes that change the whole leaf


def _mistakes(scene: Scene, number: int) -> Iterator[tuple[str, bool]]:
    """What might have been done to the leaf, and whether that explains the measured slopes."""
    claimed = scene.claimed[number]
    slopes = _Slopes(scene, number)
    if not claimed.any():
        yield "zero everywhere", True
        return
    yield _factor(slopes, scene.lengths)
    if claimed.ndim == 2:
        rows, columns = claimed.shape
        if rows == columns:
            yield "transposed", slopes.are_of(claimed.T)
        elif rows > 1 and columns > 1:
            yield "transposed, then reshaped", slopes.are_of(claimed.reshape(columns, rows).T)
    for path, other in zip(scene.paths, scene.claimed, strict=True):
        if other is not claimed and other.shape == claimed.shape and other.any():
            yield f"permuted: what is claimed for {path} belongs here", slopes.are_of(other)
    yield _penalty(slopes, scene.leaf(number))
    for axis in range(claimed.ndim):
        if claimed.shape[axis] > 1:
            yield f"reversed along axis {axis}", slopes.are_of(np.flip(claimed, axis))
            for by in (1, -1):
                yield f"shifted by one along axis {axis}", slopes.are_of(np.roll(claimed, by, axis))


class _Slopes:
    """The measured slopes of one leaf, for a changed claim to explain."""

    def __init__(self, scene: Scene, number: int) -> None:
        directions = scene.survey.directions[number]
        self.directions = directions.reshape(len(directions), -1)
        measured = scene.survey.slopes.of(scene.survey.rows(number))
        self.measured = measured.value
        self.claimed = self.of(scene.claimed[number])
        size = norm(measured.value) / np.sqrt(len(measured.value))
        left = np.minimum(_EXPLAINED * size, np.abs(self.claimed - self.measured) / 10)
        self.allowed = measured.error + left

    def of(self, values: np.ndarray) -> np.ndarray:
        """Of a gradient of this leaf."""
        return np.asarray(self.directions @ values.ravel())

    def are(self, slopes: np.ndarray) -> bool:
        """Whether these are the measured ones.  One direction alone explains nothing."""
        near = np.abs(slopes - self.measured) <= self.allowed
        return len(slopes) > 1 and bool(near.all())

    def are_of(self, values: np.ndarray) -> bool:
        """Whether the measured ones are those of this gradient."""
        return self.are(self.of(values))


def _factor(slopes: _Slopes, lengths: frozenset[int]) -> tuple[str, bool]:
    """claimed = factor × true."""
    overlap = float(slopes.claimed @ slopes.measured)
    if not overlap:
        return "", False
    factor = float(slopes.claimed @ slopes.claimed) / overlap
    name = f"off by a factor of {_factor_name(factor, lengths)}"
    return name, slopes.are(slopes.claimed / factor)


def _factor_name(factor: float, lengths: frozenset[int]) -> str:
    """2, 1/2, -1, 32 where something is as long; else as a number."""
    for size in sorted(lengths - {0, 1, 2, 3, 4}):
        for sign in (1, -1):
            if np.isclose(factor, sign * size, rtol=_EXPLAINED):
                return f"{sign * size} (the length of an axis here)"
            if np.isclose(factor, sign / size, rtol=_EXPLAINED):
                return f"{'-' if sign < 0 else ''}1/{size} (the length of an axis here)"
    near = Fraction(factor).limit_denominator(8)
    if near and np.isclose(factor, float(near), rtol=_EXPLAINED):
        return str(near)
    return significant(factor, 5)


def _penalty(slopes: _Slopes, leaf: np.ndarray) -> tuple[str, bool]:
    """true = claimed + λ x: what an L2 penalty forgotten, doubled or misplaced looks like."""
    own = slopes.of(leaf)
    if not own.any():
        return "", False
    strength = float(own @ (slopes.measured - slopes.claimed) / (own @ own))
    verb = "missing" if strength > 0 else "too much"
    name = (
        f"{significant(abs(strength), 4)} times the argument itself is {verb}, as of an L2 penalty"
    )
    return name, slopes.are(slopes.claimed + strength * own)


# Mistakes in some entries


class _Entries(NamedTuple):
    """Entries that were measured one by one, N of them."""

    shape: tuple[int, ...]  # of the leaf
    complete: bool  # whether these are all there are
    place: np.ndarray  # (N, 2) row and column in the leaf as a matrix
    claimed: np.ndarray  # (N,)
    measured: np.ndarray
    error: np.ndarray
    wrong: np.ndarray  # whether each is wrong for certain

    def position(self, which: int) -> tuple[int, ...]:
        """Of one entry, in the leaf's own shape."""
        flat = int(self.place[which] @ (as_matrix(self.shape)[1], 1))
        return tuple(map(int, np.unravel_index(flat, self.shape))) if self.shape else ()


def _measured_entries(
    scene: Scene, numbers: Sequence[int], coordinates: int
) -> dict[int, _Entries]:
    """All entries of each leaf; where they are too many, a sample and the likeliest culprits."""
    complete = {n: scene.claimed[n].size <= coordinates for n in numbers}
    worst = _worst_lines(scene, [n for n in numbers if not complete[n]])
    places = {
        n: _every(scene, n) if complete[n] else _likeliest(scene, n, worst[n]) for n in numbers
    }
    windows = [(n, row, row + 1, column, column + 1) for n in numbers for row, column in places[n]]
    found = _measure(scene, windows)
    entries, start = {}, 0
    for n in numbers:
        own = slice(start, start + len(places[n]))
        start = own.stop
        columns = (column[own] for column in found)
        entries[n] = _Entries(scene.claimed[n].shape, complete[n], places[n], *columns)
    return entries


def _measure(scene: Scene, windows: Sequence[Window]) -> tuple[np.ndarray, ...]:
    """Along the windows' unit directions, all signs +1: claimed slopes, measured ones, their error
    bars, and which of the claimed ones are wrong for certain."""
    if not windows:
        return (np.empty(0),) * 4
    survey = scene.survey
    rows = [survey.rows(number) for number in range(len(scene.claimed))]
    steps = [float(np.median(survey.slopes.step[own])) * RATIO**2 for own in rows]
    reach = np.array([step * size for step, size in zip(steps, survey.sizes, strict=True)])
    sigma = np.array([np.max(survey.ladder.sigma[own]) for own in rows])
    which = np.array(windows)[:, 0]
    ladder = climb_windows(
        survey.arena.problem.objective,
        survey.arena.problem.leaves,
        survey.arena.problem.held,
        tuple(reach),
        np.array(windows),
        eps=survey.arena.eps,
        sigma=sigma[which],
        chunk=survey.chunk,
    )
    claimed = np.array([_claimed_along(scene, window) for window in windows])
    measured = slopes(ladder)
    scale = norm(measured.value) / np.sqrt(len(windows))
    wrong = judge(claimed * reach[which], ladder, measured, scale, _EXPLAINED).failed
    return claimed, measured.value / reach[which], measured.error / reach[which], wrong


def _every(scene: Scene, number: int) -> np.ndarray:
    columns = as_matrix(scene.claimed[number].shape)[1]
    return np.stack(np.divmod(np.arange(scene.claimed[number].size), columns), axis=1)


def _likeliest(scene: Scene, number: int, worst: list[list[int]]) -> np.ndarray:
    """The crossings of the worst rows and columns, and a random sample."""
    rows, columns = as_matrix(scene.claimed[number].shape)
    crossings = [(row, column) for row in worst[0] for column in worst[1]]
    sample = np.random.default_rng(0).integers(0, (rows, columns), size=(_SAMPLED, 2))
    return np.unique(np.concatenate([np.array(crossings), sample]), axis=0)


def _worst_lines(scene: Scene, numbers: Sequence[int]) -> dict[int, list[list[int]]]:
    """The rows and the columns of each leaf that are furthest off: those of the worst block of
    them, and of the worst block in that, until a block is one."""
    axes = [(n, axis) for n in numbers for axis in (0, 1)]
    worst = {(n, axis): (0, as_matrix(scene.claimed[n].shape)[axis]) for n, axis in axes}
    ranked: dict[Axis, list[Span]] = {}
    while open_axes := [key for key in axes if key not in ranked]:
        found = _by_excess(scene, {key: _blocks(*worst[key]) for key in open_axes})
        worst |= {key: spans[0] for key, spans in found.items()}
        ranked |= {key: own for key, own in found.items() if own[0][1] - own[0][0] == 1}
    first = {key: [start for start, _ in spans[:_WORST]] for key, spans in ranked.items()}
    return {n: [first[n, 0], first[n, 1]] for n in numbers}


def _blocks(start: int, stop: int) -> list[Span]:
    edges = np.unique(np.linspace(start, stop, min(_BLOCKS, stop - start) + 1).astype(int))
    return list(pairwise(map(int, edges)))


def _by_excess(scene: Scene, spans: dict[Axis, list[Span]]) -> dict[Axis, list[Span]]:
    """The spans of rows or columns, those first along which the claim is furthest off."""
    windows = [_window(scene, axis, span) for axis, own in spans.items() for span in own]
    claimed, measured, error, wrong = _measure(scene, windows)
    excess = np.where(wrong, np.abs(claimed - measured) - error, 0.0).tolist()
    ranked = {axis: [(excess.pop(0), span) for span in own] for axis, own in spans.items()}
    return {axis: [span for _, span in sorted(own, reverse=True)] for axis, own in ranked.items()}


def _window(scene: Scene, axis: Axis, span: Span) -> Window:
    number, along_columns = axis
    rows, columns = as_matrix(scene.claimed[number].shape)
    return (number, 0, rows, *span) if along_columns else (number, *span, 0, columns)


def _claimed_along(scene: Scene, window: Window) -> float:
    number, top, bottom, left, right = window
    leaf = scene.claimed[number]
    part = leaf.reshape(as_matrix(leaf.shape))[top:bottom, left:right]
    return float(part.sum() / np.sqrt(part.size))


def _furthest(entries: _Entries) -> tuple[Entry, ...]:
    gap = np.where(entries.wrong, np.abs(entries.claimed - entries.measured), 0.0)
    order = [int(i) for i in np.argsort(-gap)[:_WORST] if gap[i] > 0]
    return tuple(
        Entry(entries.position(i), float(entries.claimed[i]), float(entries.measured[i]))
        for i in order
    )


def _pattern(entries: _Entries) -> str:
    """What the wrong entries have in common."""
    if not entries.wrong.any():
        return ""
    if not entries.complete:
        return _pattern_of_sample(entries)
    return _place(entries) or _kind_of_error(entries)


def _place(entries: _Entries) -> str:
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
    """Zero, of the wrong sign, without a slope: at some of the entries."""
    wrong = entries.wrong
    claimed, measured, error = (
        values[wrong] for values in (entries.claimed, entries.measured, entries.error)
    )
    some = f"{wrong.sum()} of {len(wrong)} entries"
    if not claimed.any():
        return f"zero at {some}, the others are right"
    if np.all(np.abs(measured) <= error):
        return f"right only where the slope is 1: the slope is 0 at {some}, and one is claimed"
    if np.all(np.abs(claimed + measured) <= error + _EXPLAINED * np.abs(measured)):
        return f"wrong sign at {some}"
    return _by_row(entries) or ("" if wrong.all() else f"wrong at {some}")


def _pattern_of_sample(entries: _Entries) -> str:
    if entries.wrong.sum() == 1:
        return "one entry is wrong; the others that were measured are right"
    share = entries.wrong.sum() / len(entries.wrong)
    return "" if share > 0.9 else f"wrong at {entries.wrong.sum()} of {len(entries.wrong)} measured"


def _by_row(entries: _Entries) -> str:
    """Each row off by a factor of its own, none below 1: what a missing slope h' ≤ 1 looks like."""
    shape = as_matrix(entries.shape)
    claimed, measured = entries.claimed.reshape(shape), entries.measured.reshape(shape)
    with np.errstate(all="ignore"):
        factors = np.sum(claimed * measured, axis=1) / np.sum(measured**2, axis=1)
    left = np.abs(claimed - factors[:, None] * measured)
    if shape[1] < 2 or not np.all(left <= _EXPLAINED * np.abs(claimed).max()):
        return ""
    span = f"each row is off by a factor of its own, {significant(factors.min(), 3)} to "
    slope = ": a slope h'(a) is missing" if factors.min() > 1 - _EXPLAINED else ""
    return f"{span}{significant(factors.max(), 3)}{slope}"


# All leaves together


def summary(verdicts: Sequence[tuple[str, str, str]]) -> str:
    """What the failed ones of all leaves have in common; (path, verdict, diagnosis) in the order in
    which the arguments have them, taken for that of the forward pass."""
    failed = [(path, diagnosis) for path, verdict, diagnosis in verdicts if verdict == "fail"]
    if not failed:
        return ""
    diagnoses = {diagnosis for _, diagnosis in failed}
    common = diagnoses.pop() if len(diagnoses) == 1 else ""
    where = _where([verdict == "fail" for _, verdict, _ in verdicts], [v[0] for v in verdicts])
    said = common or _suspicion(verdicts)
    if not said:
        return where if where.startswith("every") else ""
    return f"{where}: {said}" if where else said


def _where(failed: Sequence[bool], paths: Sequence[str]) -> str:
    """Every leaf, every bias, or those up to one of them."""
    wrong = [path for path, bad in zip(paths, failed, strict=True) if bad]
    right = [path for path in paths if path not in wrong]
    if len(paths) == 1:
        return ""
    if not right:
        return "every leaf"
    kinds = {path.rpartition(".")[2] for path in wrong}
    if len(wrong) > 1 and len(kinds) == 1 and not kinds & {p.rpartition(".")[2] for p in right}:
        return f"every {kinds.pop()}"
    if len(wrong) > 1 and all(failed[: len(wrong)]):
        return f"every leaf up to {wrong[-1]}"
    return ", ".join(wrong)


def _suspicion(verdicts: Sequence[tuple[str, str, str]]) -> str:
    """Where to look first when the leaves fail in different ways."""
    bad = [verdict == "fail" for _, verdict, _ in verdicts]
    count = sum(bad)
    if len(bad) > 2 and all(bad):
        return "look at the error at the output, and at the mean over examples"
    if count > 1 and all(bad[:count]):
        return "right above; look at what is passed back to it, δ Wᵀ and the slope"
    return ""
