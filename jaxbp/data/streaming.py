"""Streaming: more rows than memory holds, read from shards, split, standardised and shuffled.

    first pass   statistics of the training rows; validation and test rows are kept
    then         epochs of training rows, in windows that are read ahead

The order is Grain's: it shuffles blocks over the whole source, by an index shuffle that takes no
memory; those of a window, which memory holds, are mixed row by row.  Several processes have the
same order, and each reads its own rows of every batch.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxbp.data.arrays import note_of_others
from jaxbp.data.cells import quoted
from jaxbp.data.errors import DataError, reader
from jaxbp.data.first_pass import BLOCK_BYTES, MOST_CLASSES, Part, Seen, first_pass, rows_in
from jaxbp.data.loading import Dataset, Decisions
from jaxbp.data.preparation import Preparation, encode_target, guess_task, transform
from jaxbp.data.raw import RawData, Target, Task
from jaxbp.data.shards import KINDS, Block, Shards, shards_of
from jaxbp.gradient import Batch
from jaxbp.parallel import place_among
from jaxbp.text import counted

_KEPT_ROWS, _KEPT_BYTES = 2**17, 2**26  # at most, of validation, of test and of the sample
_WINDOW_BYTES = 2**25  # of a window's rows in float32
_CHEAP = 32  # rows of a block where any may be read at little cost: the order is nearly one by one
_VALIDATION, _TEST = 0.15, 0.2  # shares of the rows, as ``load`` has them


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
    mesh: Mesh | None = None,
) -> Streamed:
    """Read a source once, keeping what memory holds: validation and test rows, a sample of the
    training rows, and the statistics by which all are prepared.

    source, target, task, seed, standardize_target, drop: as for ``load``.
    mesh: of the devices that train; where they are those of several processes, each reads some of
        the rows, and has what memory keeps of all of them.  One process unless given.

    Raises DataError.
    """
    shards = shards_of(source, target, drop)
    reader("grain", "a stream", "grain")  # before a pass over all rows
    width = len(shards.features) + len(shards.outputs)
    most = max(1, min(_KEPT_ROWS, _KEPT_BYTES // (4 * width)))
    share = most / shards.rows
    test, validation = min(_TEST, share), min(_VALIDATION, share)
    part = Part(seed, test, test + validation, 1 - min(share, 1 - test - validation))
    seen = first_pass(shards, part, mesh)
    task, reason, labels, encode, of_target = _target(shards, seen, task, standardize_target)
    preparation = Preparation(
        features=shards.features,
        mean=seen.inputs.mean,
        scale=seen.inputs.scale,
        labels=labels,
        target_mean=of_target[0],
        target_scale=of_target[1],
        targets=shards.outputs if shards.kind != ".npz" else None,
        image_shape=shards.image_shape,
    )
    batches = {}
    for name, (xs, targets) in seen.kept.items():
        x, raw = np.concatenate(xs), np.concatenate(targets)
        if not len(x):
            raise DataError(f"{source}: {counted(shards.rows, 'row')} leave none for {name}")
        batches[name] = Batch(transform(preparation, x), encode(raw))
    dataset = Dataset(
        shards.name,
        batches["train"],
        batches["validation"],
        batches["test"],
        preparation,
        Decisions(
            ",".join(shards.outputs), task, reason, None, shards.dropped, _left_out(source, shards)
        ),
    )
    rows = {"train": seen.inputs.count}
    rows |= {name: len(batches[name].x) for name in ("validation", "test")}
    return Streamed(dataset, rows, shards, part, encode)


def _left_out(source: Any, shards: Shards) -> tuple[str, ...]:
    """Notes of arrays of an .npz, the index of pandas and files in a folder that are not read."""
    notes = shards.of_pandas.notes
    if shards.kind == ".npz":
        notes = note_of_others(shards.outputs[0], shards.dropped)
    path = Path(source)
    others = [each.name for each in sorted(path.iterdir())] if path.is_dir() else []
    others = [name for name in others if Path(name).suffix.lower() not in KINDS]
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return (*notes, f"{quoted(others[0])}{more} in the folder left out") if others else notes


def _target(shards: Shards, seen: Seen, task: Task | None, standardize: bool) -> tuple[Any, ...]:
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
        raise DataError(f"{shards.name}: the target has more than {MOST_CLASSES} different values")
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
    mesh: of the devices that train; of several processes each has its own rows of every batch.
    epoch: of those to come, from 0.

    An epoch is a number of windows, and begins where the one before ended: the state of Grain's
    iterator is the number of the next window, a function of the epoch.
    """

    source: Streamed
    batch_size: int
    epoch_rows: int
    finish: Callable[[Batch], Batch]
    mesh: Mesh | None = None
    epoch: int = 0

    def __post_init__(self) -> None:
        shards, part = self.source.shards, self.source.part
        grain = reader("grain", "a stream", "grain")
        most = rows_in(BLOCK_BYTES, shards)
        blocks = shards.blocks(min(most, _CHEAP) if shards.kind == ".npy" else most)
        rows = self.source.rows["train"]
        share = min(1.0, self.epoch_rows / rows)
        size = min(rows_in(_WINDOW_BYTES, shards), math.ceil(share * shards.rows))
        per_window = max(1, size * len(blocks) // shards.rows)

        def window(numbers: Any, rng: np.random.Generator) -> tuple[list[Block], np.ndarray]:
            """Some blocks, and the order of the training rows among theirs."""
            those = [blocks[number] for number in np.sort(numbers)]
            rows = np.concatenate([block.numbers for block in those])
            return those, rng.permutation(np.flatnonzero(part.hashes(rows) >= part.validation))

        numbers = grain.MapDataset.range(len(blocks)).seed(part.seed).shuffle()
        windows = numbers.batch(per_window).random_map(window)
        self._windows = windows.repeat()
        self._in_turn = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
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
        iterator = iter(self._windows.to_iter_dataset(self._in_turn))
        iterator.set_state({"next_index": self.epoch * self.windows})
        number, processes = place_among(self.mesh)
        own = len(range(number, self.batch_size, processes))  # rows of a whole batch
        count, left = 0, None  # of all rows so far; this process's rows that fill no batch
        for rows, of_window in self._read_ahead(islice(iterator, self.windows), number, processes):
            count += of_window
            if left is not None:
                rows = tuple(map(np.concatenate, zip(left, rows, strict=True)))  # noqa: PLW2901
            whole = len(rows[0]) // own * own
            for start in range(0, whole, own):
                yield self._batch(rows, slice(start, start + own))
            left = tuple(array[whole:].copy() for array in rows)
        if count % self.batch_size:
            yield self._batch(left, slice(None))

    def _read_ahead(
        self, windows: Iterator[Any], number: int, processes: int
    ) -> Iterator[tuple[Any, int]]:
        """This process's rows of each window, and the count of all: the next is being read."""
        count, reading = 0, deque[tuple[Future[Any], int]]()
        with ThreadPoolExecutor(1) as executor:
            for blocks, order in windows:
                places = (count + np.arange(len(order))) % self.batch_size
                count += len(order)
                own = order[places % processes == number]
                reading.append((executor.submit(self._read, blocks, own), len(order)))
                if len(reading) > 1:
                    yield _result(*reading.popleft())
            while reading:
                yield _result(*reading.popleft())

    def _read(self, blocks: list[Block], order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of some blocks, by their positions among all of theirs, prepared."""
        chosen, places = np.unique(order, return_inverse=True)
        x, target = self.source.shards.read(blocks, chosen)
        preparation = self.source.dataset.preparation
        return transform(preparation, x[places]), self.source.encode(target[places])

    def _batch(self, rows: Any, chosen: slice) -> Batch:
        x, target = (array[chosen] for array in rows)
        return self.finish(Batch(x, target))


def _result(rows: Future[Any], count: int) -> tuple[Any, int]:
    """The rows that have been read; nobody else holds them any more."""
    return rows.result(), count
