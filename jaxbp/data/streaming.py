"""Streaming: more rows than memory holds, read from shards, split, standardised and shuffled.

    pass 1   statistics of the training rows, block by block; validation and test rows are kept
    then     epochs of training rows, in windows that are read ahead

The part of a row is a hash of its number (the finaliser of SplitMix64: Steele, Lea, Flood 2014,
figure 17).  Mean and variance of blocks are combined by the parallel form of Chan, Golub and
LeVeque (1983, equation 2.1).  The order is Grain's: it shuffles blocks over the whole source, by an
index shuffle that takes no memory; those of a window, which memory holds, are mixed row by row.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbp.data.cells import quoted
from jaxbp.data.errors import DataError, reader
from jaxbp.data.loading import Dataset, Decisions
from jaxbp.data.preparation import Preparation, encode_target, guess_task, transform
from jaxbp.data.raw import RawData, Target, Task
from jaxbp.data.shards import KINDS, Shards, shards_of
from jaxbp.gradient import Batch
from jaxbp.text import counted

_KEPT_ROWS, _KEPT_BYTES = 2**17, 2**26  # at most, of validation, of test and of the sample
_WINDOW_BYTES = 2**25  # of a window's rows in float32
_BLOCK_BYTES = 2**23  # of a block's rows, likewise
_CHEAP = 32  # rows of a block where any may be read at little cost: the order is nearly one by one
_VALIDATION, _TEST = 0.15, 0.2  # shares of the rows, as ``load`` has them
_MOST_CLASSES = 1000


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
        self.count, self.mean, self._sum = 0, np.zeros(columns), np.zeros(columns)

    def add(self, values: np.ndarray) -> None:
        """Add a block (N, K) of rows."""
        if not len(values):
            return
        mean = values.mean(0, dtype=np.float64)
        before, self.count = self.count, self.count + len(values)
        off = mean - self.mean
        self.mean = self.mean + off * (len(values) / self.count)
        self._sum += ((values - mean) ** 2).sum(0, dtype=np.float64)
        self._sum += off**2 * (before * len(values) / self.count)

    @property
    def scale(self) -> np.ndarray:
        """The standard deviation, divided by N; 1 for a column that is constant but for rounding,
        as scikit-learn's StandardScaler has it."""
        variance, rounding = self._sum / self.count, self.count * np.finfo(np.float64).eps
        constant = variance <= rounding * variance + (rounding * self.mean) ** 2
        scale: np.ndarray = np.where(constant, 1.0, np.sqrt(variance))
        return scale


class Streamed(NamedTuple):
    """A source that is streamed."""

    dataset: Dataset  # whose training rows are a sample
    rows: dict[str, int]  # how many each part has
    shards: Shards
    part: Part
    encode: Callable[[np.ndarray], np.ndarray]  # the target of a block


def load_stream(
    source: Any,
    *,
    target: Target,
    task: Task | None,
    seed: int,
    standardize_target: bool,
    drop: tuple[str | int, ...] = (),
) -> Streamed:
    """Read a source once, keeping what memory holds: validation and test rows, a sample of the
    training rows, and the statistics by which all are prepared.

    source, target, task, seed, standardize_target, drop: as for ``load``.

    Raises DataError.
    """
    shards = shards_of(source, target, drop)
    reader("grain", "a stream", "grain")  # before a pass over all rows
    width = len(shards.features) + len(shards.outputs)
    most = max(1, min(_KEPT_ROWS, _KEPT_BYTES // (4 * width)))
    share = most / shards.rows
    test, validation = min(_TEST, share), min(_VALIDATION, share)
    part = Part(seed, test, test + validation, 1 - min(share, 1 - test - validation))
    seen = _seen(shards, part)
    task, reason, labels, encode, of_target = _target(shards, seen, task, standardize_target)
    preparation = Preparation(
        features=shards.features,
        mean=seen.inputs.mean,
        scale=seen.inputs.scale,
        labels=labels,
        target_mean=of_target[0],
        target_scale=of_target[1],
        targets=shards.outputs if len(shards.outputs) > 1 else None,
        image_shape=shards.image_shape,
    )
    batches = {}
    for name, (xs, targets) in seen.kept.items():
        if not sum(map(len, xs)):
            raise DataError(f"{source}: {counted(shards.rows, 'row')} leave none for {name}")
        x, raw = np.concatenate(xs), np.concatenate(targets)
        batches[name] = Batch(transform(preparation, x), encode(raw))
    dataset = Dataset(
        shards.name,
        batches["train"],
        batches["validation"],
        batches["test"],
        preparation,
        Decisions(",".join(shards.outputs), task, reason, None, shards.dropped, _left_out(source)),
    )
    rows = {"train": seen.inputs.count}
    rows |= {name: len(batches[name].x) for name in ("validation", "test")}
    return Streamed(dataset, rows, shards, part, encode)


def _left_out(source: Any) -> tuple[str, ...]:
    """A note of the files in a folder that are no shards."""
    path = Path(source)
    others = [each.name for each in sorted(path.iterdir())] if path.is_dir() else []
    others = [name for name in others if Path(name).suffix.lower() not in KINDS]
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return (f"{quoted(others[0])}{more} in the folder left out",) if others else ()


class _Seen(NamedTuple):
    """The findings of the first pass."""

    inputs: Moments  # of the training rows
    values: Moments | None  # of their targets, where these are numbers
    different: np.ndarray | None  # the different targets, sorted; None: too many
    kept: dict[str, tuple[list[np.ndarray], list[np.ndarray]]]  # rows by part, as they are


def _seen(shards: Shards, part: Part) -> _Seen:
    outputs = len(shards.outputs)
    inputs = Moments(len(shards.features))
    values: Moments | None = Moments(outputs)
    different: np.ndarray | None = None
    kept: dict[str, Any] = {name: ([], []) for name in ("train", "validation", "test")}
    too_many = outputs > 1
    for block in shards.blocks(_rows_in(_BLOCK_BYTES, shards)):
        x, target = shards.read([block])
        if not too_many:
            found = np.unique(target)
            different = found if different is None else np.union1d(different, found)
            too_many = len(different) > _MOST_CLASSES
        u = part.hashes(block.numbers)
        trains = u >= part.validation
        inputs.add(x[trains])
        if target.dtype.kind in "biuf" and values is not None:
            values.add(target[trains].reshape(-1, outputs))
        else:
            values = None
        for name, rows in (
            ("test", u < part.test),
            ("validation", (u >= part.test) & ~trains),
            ("train", trains & (u >= part.sample)),
        ):
            if rows.any():
                kept[name][0].append(np.asarray(x[rows]))
                kept[name][1].append(np.asarray(target[rows]))
    return _Seen(inputs, values, None if too_many else different, kept)


def _rows_in(size: int, shards: Shards) -> int:
    """How many rows have about so many bytes in float32."""
    return max(1, size // (4 * (len(shards.features) + len(shards.outputs))))


def _target(shards: Shards, seen: _Seen, task: Task | None, standardize: bool) -> tuple[Any, ...]:
    """The task and why, the classes' names, how targets are encoded, and their mean and scale."""
    raw = RawData(shards.name, shards.features, None, np.zeros(0), target_name=shards.outputs[0])
    if len(shards.outputs) > 1 and task != "regression":
        raise DataError(
            f"{shards.name}: several target columns are a stream's for regression alone: "
            "task='regression' (--task regression)"
        )
    reason = ""
    if task is None:
        if seen.different is None:
            task = "regression"
        else:
            task, reason = guess_task(raw._replace(target=seen.different))
    if task == "regression":
        if seen.values is None:
            raise DataError(f"{shards.name}: the target is text; regression needs numbers")
        count = len(shards.outputs)
        if seen.different is not None and len(seen.different) < 2:
            raise DataError(f"{shards.name}: every row has the same target, expected two values")
        moments = seen.values.mean, seen.values.scale
        mean, scale = moments if standardize else (np.zeros(count), np.ones(count))

        def values(target: np.ndarray) -> np.ndarray:
            scaled: np.ndarray = (target.reshape(len(target), count) - mean) / scale
            return scaled.astype(np.float32)

        return task, reason, None, values, (mean, scale)
    if seen.different is None:
        raise DataError(f"{shards.name}: the target has more than {_MOST_CLASSES} different values")
    different = seen.different
    labels, codes = encode_target(raw._replace(target=different), "classification")

    def classes(target: np.ndarray) -> np.ndarray:
        found: np.ndarray = codes[np.searchsorted(different, target)]
        return found

    return task, reason, labels, classes, (np.zeros(1), np.ones(1))


@dataclass
class Epochs:
    """The training rows of shards, for ``fit``: batches, in another order in each pass.

    source: as it was loaded.
    batch_size: rows of a batch; the last one of an epoch has those that are left.
    epoch_rows: how many rows an epoch has, about; all, where there are no more.
    finish: what becomes of each batch at last.
    epoch: of those to come, from 0.

    An epoch is a number of windows, and begins where the one before ended: the state of Grain's
    iterator is the number of the next window, a function of the epoch.
    """

    source: Streamed
    batch_size: int
    epoch_rows: int
    finish: Callable[[Batch], Batch]
    epoch: int = 0

    def __post_init__(self) -> None:
        shards, part = self.source.shards, self.source.part
        grain = reader("grain", "a stream", "grain")
        most = _rows_in(_BLOCK_BYTES, shards)
        blocks = shards.blocks(min(most, _CHEAP) if shards.kind == ".npy" else most)
        rows = self.source.rows["train"]
        share = min(1.0, self.epoch_rows / rows)
        size = min(_rows_in(_WINDOW_BYTES, shards), math.ceil(share * shards.rows))
        per_window = max(1, size * len(blocks) // shards.rows)
        preparation = self.source.dataset.preparation

        def window(numbers: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            """The training rows of some blocks, mixed."""
            those = [blocks[number] for number in np.sort(numbers)]
            rows = np.concatenate([block.numbers for block in those])
            order = rng.permutation(np.flatnonzero(part.hashes(rows) >= part.validation))
            x, target = shards.read(those)
            return transform(preparation, x[order]), self.source.encode(target[order])

        numbers = grain.MapDataset.range(len(blocks)).seed(part.seed).shuffle()
        windows = numbers.batch(per_window).random_map(window)
        self._windows = windows.repeat()
        self._read_ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        self.windows = max(1, round(len(windows) * share))  # of an epoch
        self.rows = math.ceil(rows * self.windows / len(windows))  # of an epoch, about
        self.passes = self.windows / len(windows)  # of an epoch

    def __len__(self) -> int:
        """How many batches an epoch has, about."""
        return math.ceil(self.rows / self.batch_size)

    def set_epoch(self, number: int) -> None:
        """Say which epoch is the next, from 0."""
        self.epoch = number

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self._windows.to_iter_dataset(self._read_ahead))
        iterator.set_state({"next_index": self.epoch * self.windows})
        left: Any = None  # rows of a window that fill no batch
        for _ in range(self.windows):
            rows = next(iterator)
            if left is not None:
                rows = tuple(map(np.concatenate, zip(left, rows, strict=True)))
            whole = len(rows[0]) // self.batch_size * self.batch_size
            for start in range(0, whole, self.batch_size):
                yield self._batch(rows, slice(start, start + self.batch_size))
            left = tuple(array[whole:] for array in rows)
        if left is not None and len(left[0]):
            yield self._batch(left, slice(None))

    def _batch(self, rows: Any, chosen: slice) -> Batch:
        x, target = (array[chosen] for array in rows)
        return self.finish(Batch(x, target))
