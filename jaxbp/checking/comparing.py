"""Comparisons: how far two gradient trees are apart, leaf by leaf, and where most.

    relative error = ‖claimed - reference‖ / ‖reference‖

A small leaf is never drowned by a large one, because each is measured by its own norm.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbp.text import Table, align, number, plain, significant
from jaxbp.trees import named_leaves


@dataclass(frozen=True)
class Entry:
    """One entry of a leaf, claimed and as it should be."""

    place: tuple[int, ...]
    claimed: float
    expected: float


@dataclass(frozen=True)
class LeafComparison:
    """How far one leaf is from its reference."""

    path: str
    shape: tuple[int, ...]
    relative_error: float  # ‖c - r‖ / ‖r‖; ‖c‖ itself where r is all zero, 0 where both are equal
    ulps: float  # the largest difference of two entries, in units in the last place
    cosine: float  # ⟨c, r⟩ / ‖c‖‖r‖; 1 where both are equal
    worst: Entry | None  # where they differ most; None for an empty leaf


@dataclass(frozen=True)
class Comparison:
    """How far two trees are apart; printed, a table."""

    leaves: tuple[LeafComparison, ...]

    @property
    def relative_error(self) -> float:
        """The largest of any leaf."""
        return _largest(leaf.relative_error for leaf in self.leaves)

    @property
    def ulps(self) -> float:
        """The largest of any leaf."""
        return _largest(leaf.ulps for leaf in self.leaves)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        result: dict[str, Any] = plain({"relative_error": self.relative_error, **asdict(self)})
        return result

    def text(self, width: int = 100) -> str:
        """The table, in that many columns of text."""
        columns = ("leaf", "shape", "relative error", "ulps", "cosine", "worst entry")
        rows = [
            (
                leaf.path,
                str(leaf.shape),
                number(leaf.relative_error),
                significant(leaf.ulps, 3),
                f"{leaf.cosine:.6f}",
                "" if leaf.worst is None else describe(leaf.worst),
            )
            for leaf in self.leaves
        ]
        return align(Table(columns, rows), width)

    def __str__(self) -> str:
        return self.text()


def describe(entry: Entry) -> str:
    """An entry in words, as in "[3, 0]: 1.02, not 1"."""
    claimed, expected = significant(entry.claimed, 6), significant(entry.expected, 6)
    return f"{list(entry.place)}: {claimed}, not {expected}"


def compare(claimed: Any, reference: Any) -> Comparison:
    """Compare two trees of arrays, such as a hand-written gradient and ``jax.grad``'s.

    Raises ValueError if they differ in structure or in a leaf's shape, and TypeError if a leaf is
    not a floating point array; each names the leaf.

    >>> import jax.numpy as jnp
    >>> print(compare({"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([3.0, 4.5])}))
    leaf   shape  relative error      ulps    cosine  worst entry
    ['w']  (2,)          9.2e-02  1.05e+06  0.998460  [1]: 4, not 4.5
    """
    ours, theirs = named_leaves(claimed), named_leaves(reference)
    if ours.keys() != theirs.keys():
        got, expected = (
            ", ".join(path or "(the whole)" for path in paths) or "none" for paths in (ours, theirs)
        )
        raise ValueError(f"claimed: got leaves {got}, expected {expected}")
    return Comparison(tuple(_compared(path, ours[path], theirs[path]) for path in ours))


def _largest(values: Iterable[float]) -> float:
    return float(np.max(list(values), initial=0.0))  # np.max, unlike max, keeps a NaN


def _compared(path: str, claimed: Any, reference: Any) -> LeafComparison:
    ours, theirs = np.asarray(claimed), np.asarray(reference)
    for name, leaf in (("claimed", ours), ("reference", theirs)):
        if not jnp.issubdtype(leaf.dtype, np.floating):
            raise TypeError(f"{name}{path}: got {leaf.dtype}, expected floating point numbers")
    if ours.shape != theirs.shape:
        raise ValueError(f"claimed{path}: got shape {ours.shape}, expected {theirs.shape}")
    if not ours.size:
        return LeafComparison(path, ours.shape, 0.0, 0.0, 1.0, None)
    ulps = _ulps(ours, theirs)
    c, r = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where(c == r, 0.0, np.abs(c - r))  # ∞ is no gap from ∞
        difference, size = norm(gap), norm(r)
    at = np.unravel_index(np.argmax(np.where(np.isnan(gap), np.inf, gap)), c.shape)
    return LeafComparison(
        path,
        ours.shape,
        relative_error=difference / size if size and difference else difference,
        ulps=ulps,
        cosine=_cosine(c, r),
        worst=Entry(tuple(map(int, at)), float(c[at]), float(r[at])),
    )


def norm(values: np.ndarray) -> float:
    """‖values‖₂ without overflow or underflow: the squares of the values need not be numbers."""
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest == 0 or not np.isfinite(largest):
        return largest
    return largest * float(np.linalg.norm((values / largest).ravel()))


def _cosine(c: np.ndarray, r: np.ndarray) -> float:
    sizes = norm(c), norm(r)
    if 0 in sizes or np.array_equal(c, r):
        return float(sizes[0] == sizes[1])
    if not np.isfinite(sizes).all():
        return np.nan
    return float(np.vdot(c / sizes[0], r / sizes[1]))


def _ulps(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest |c - r| in units in the last place of the coarser dtype of the two."""
    dtype = min(ours.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)
    c, r = ours.astype(np.float64), theirs.astype(np.float64)
    info = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    larger = np.maximum(np.abs(c), np.abs(r))
    _, exponent = np.frexp(np.maximum(larger, float(info.tiny)))
    with np.errstate(invalid="ignore"):
        ulps = np.abs(c - r) / np.ldexp(float(info.eps), exponent - 1)
    return float(np.max(np.where(c == r, 0.0, ulps)))
