"""The first pass over shards: statistics of the training rows, and the rows that memory keeps.

The part of a row is a hash of its number (the finaliser of SplitMix64: Steele, Lea, Flood 2014,
figure 17).  Mean and variance of blocks are combined by the parallel form of Chan, Golub and
LeVeque (1983, equation 2.1).  Of several processes each reads some of the blocks, and all of them
have what was found in the end.
"""

import io
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxbp.data.shards import Block, Shards
from jaxbp.parallel import of_each_process, place_among

PARTS = ("train", "validation", "test")
BLOCK_BYTES = 2**23  # of a block's rows in float32
MOST_CLASSES = 1000


class Part(NamedTuple):
    """Which rows are of which part, by the hash of their numbers, in [0, 1)."""

    seed: int
    test: float  # below it: the test rows
    validation: float  # below it: the validation rows
    sample: float  # from it on: the training rows of which a sample is kept

    def hashes(self, numbers: np.ndarray) -> np.ndarray:
        """The hashes of rows by their numbers."""
        with np.errstate(over="ignore"):
            numbers = numbers.astype(np.uint64)
            key = np.uint64(self.seed) * np.uint64(0xD1342543DE82EF95)
            z = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + key
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
        return (z >> np.uint64(11)) * 2.0**-53


class Moments:
    """Mean and variance of columns, block by block."""

    def __init__(self, columns: int) -> None:
        self.count, self.mean, self.sum = 0, np.zeros(columns), np.zeros(columns)

    def add(self, values: np.ndarray) -> None:
        """Add a block (N, K) of rows."""
        if len(values):
            mean = values.mean(0, dtype=np.float64)
            self.merge(len(values), mean, ((values - mean) ** 2).sum(0, dtype=np.float64))

    def merge(self, count: int, mean: np.ndarray, total: np.ndarray) -> None:
        """Add so many rows, by their mean and the sum of (x - mean)²."""
        if not count:
            return
        before, self.count = self.count, self.count + count
        off = mean - self.mean
        self.mean = self.mean + off * (count / self.count)
        self.sum = self.sum + total + off**2 * (before * count / self.count)

    @property
    def scale(self) -> np.ndarray:
        """The standard deviation, divided by N; 1 for a column that is constant but for rounding,
        as scikit-learn's StandardScaler has it."""
        variance, rounding = self.sum / self.count, self.count * np.finfo(np.float64).eps
        constant = variance <= rounding * variance + (rounding * self.mean) ** 2
        scale: np.ndarray = np.where(constant, 1.0, np.sqrt(variance))
        return scale


class Seen(NamedTuple):
    """The findings of the first pass."""

    inputs: Moments  # of the training rows
    values: Moments | None  # of their targets, where these are numbers
    different: np.ndarray | None  # the different targets, sorted; None: too many
    #: inputs and targets by part, as they are: arrays whose rows follow one another
    kept: dict[str, tuple[list[np.ndarray], list[np.ndarray]]]


def first_pass(shards: Shards, part: Part, mesh: Mesh | None) -> Seen:
    """Read all rows once: with other processes of a mesh, of which each reads some of them."""
    number, processes = place_among(mesh)
    blocks = shards.blocks(rows_in(BLOCK_BYTES, shards))
    found = _found(shards, blocks[number::processes], part)
    every = [found] if processes == 1 else _of_each_process(found, mesh)
    every = [each for each in every if each]
    inputs = _merged("inputs", every)
    values = _merged("values", every) if all("values mean" in each for each in every) else None
    different = None
    if all("different" in each for each in every):
        different = np.unique(np.concatenate([each["different"] for each in every]))
    kept = {}
    for name in PARTS:
        rows, x, target = (
            list(chain.from_iterable(each[f"{name} {what}"] for each in every)) for what in _KEPT
        )
        if processes > 1:  # else they are in order
            order = np.argsort(np.concatenate(rows))
            x, target = ([np.concatenate(parts)[order]] for parts in (x, target))
        kept[name] = x, target
    few = different is not None and len(different) <= MOST_CLASSES
    return Seen(inputs, values, different if few else None, kept)


def rows_in(size: int, shards: Shards) -> int:
    """How many rows have about so many bytes in float32."""
    return max(1, size // (4 * (len(shards.features) + len(shards.outputs))))


_KEPT = ("rows", "x", "target")


def _found(shards: Shards, blocks: Iterable[Block], part: Part) -> dict[str, Any]:
    """The findings of one process in some blocks, as arrays with names: those of ``Seen``, and the
    numbers of the rows that are kept, which are lists of arrays; what is None there is absent, and
    of no blocks all is."""
    outputs = len(shards.outputs)
    inputs, values = Moments(len(shards.features)), Moments(outputs)
    numeric, different = True, np.zeros(0)
    kept: dict[str, list[Any]] = {f"{name} {what}": [] for name in PARTS for what in _KEPT}
    for place, block in enumerate(blocks):
        x, target = shards.read([block])
        if outputs == 1 and len(different) <= MOST_CLASSES:
            here = np.unique(target)
            different = np.union1d(different, here) if place else here
        u = part.hashes(block.numbers)
        trains = u >= part.validation
        inputs.add(x[trains])
        numeric = numeric and target.dtype.kind in "biuf"
        if numeric:
            values.add(target[trains].reshape(-1, outputs))
        chosen = trains & (u >= part.sample), (u >= part.test) & ~trains, u < part.test
        for name, rows in zip(PARTS, chosen, strict=True):
            for what, array in zip(_KEPT, (block.numbers, x, target), strict=True):
                kept[f"{name} {what}"].append(np.asarray(array[rows]))
    if not kept["train rows"]:
        return {}
    found = kept | _named("inputs", inputs) | (_named("values", values) if numeric else {})
    if outputs == 1 and len(different) <= MOST_CLASSES:
        found["different"] = different
    return found


def _named(name: str, moments: Moments) -> dict[str, Any]:
    count = np.array(moments.count)
    return {f"{name} count": count, f"{name} mean": moments.mean, f"{name} sum": moments.sum}


def _merged(name: str, every: list[dict[str, Any]]) -> Moments:
    moments = Moments(len(every[0][f"{name} mean"]))
    for each in every:
        moments.merge(int(each[f"{name} count"]), each[f"{name} mean"], each[f"{name} sum"])
    return moments


def _of_each_process(found: dict[str, Any], mesh: Mesh | None) -> list[dict[str, Any]]:
    """The findings of all processes of a mesh, in all of them: .npz files in memory."""
    file = io.BytesIO()
    lists = {name: each for name, each in found.items() if isinstance(each, list)}
    np.savez(file, **found | {name: [np.concatenate(each)] for name, each in lists.items()})
    own = np.frombuffer(file.getvalue(), np.uint8)
    sizes = of_each_process(np.array(len(own)), mesh)
    every = of_each_process(np.pad(own, (0, sizes.max() - len(own))), mesh)
    files = [io.BytesIO(each[:size].tobytes()) for each, size in zip(every, sizes, strict=True)]
    return [dict(np.load(file)) for file in files]
