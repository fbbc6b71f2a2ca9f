"""Saved runs: checkpoints read again, from the newest to the first that is whole.

    FOLDER/N/arrays   parameters, optimiser's state, key, history, and the best epoch's parameters
    FOLDER/N/record   JSON: the inputs of the run, and a digest of all this (SHA-256)

A checkpoint of N epochs is Orbax's, which does not notice a number that has been changed in a file;
the digest does.  Nothing is pickled.
"""

import importlib
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbp.diagnostics.health import Health
from jaxbp.model import Layer, Params
from jaxbp.reprs import short
from jaxbp.training.constants import MakeOptimizer
from jaxbp.training.inputs import Inputs, check_inputs
from jaxbp.training.metrics import Evaluation
from jaxbp.training.records import Epoch
from jaxbp.training.run import Run
from jaxbp.trees import named_leaves

Folder = str | os.PathLike[str]
AnyOptimizer: TypeAlias = (
    optax.GradientTransformation | MakeOptimizer
)  # of ``fit``, or of ``fit_many``

FORMAT = "jaxbp run 1"


class Saved(NamedTuple):
    """The contents of a checkpoint."""

    folder: Path
    run: Run
    record: tuple[Epoch, ...]  # the epochs done, without their parameters
    best: Epoch | None  # by validation, with its parameters
    inputs: Inputs


def load_run(folder: Folder, optimizer: AnyOptimizer) -> Run:
    """The run of the newest whole checkpoint in a folder, to go on with in another way.

    ``fit(..., resume=folder)`` refuses other data, another learning rate or schedule;
    ``fit(..., resume=load_run(folder, optimizer))`` takes them, and its history begins there.
    The optimiser needs a state like the run's; of ``fit_many`` it is the function that makes one of
    a learning rate.  Raises FileNotFoundError where the folder holds no
    checkpoint, and ValueError where none is whole, or the state does not fit.
    """
    return newest(folder, optimizer).run


def resumed(
    resume: Any, optimizer: AnyOptimizer, network: Inputs, *, begins: bool
) -> tuple[Saved | None, Any]:
    """Read the newest checkpoint -> (its contents, the run to go on with); None for what is not.

    resume: as for ``fit``.
    optimizer: of the run.
    network: that is to be trained, among the inputs of the run; ValueError tells of another one.
    begins: whether a run begins, in a folder without checkpoints.
    """
    if isinstance(resume, str | os.PathLike):
        if begins:
            return None, None
        resume = newest(resume, optimizer)
    if not isinstance(resume, Saved):
        return None, resume
    check_inputs(resume.folder, resume.inputs, network)
    return resume, resume.run


def newest(folder: Folder, optimizer: AnyOptimizer) -> Saved:
    """Read the newest checkpoint that is whole; a UserWarning tells of each that is not."""
    place = Path(folder)
    if not (steps := steps_in(place)):
        raise FileNotFoundError(f"resume: {place} holds no checkpoint")
    with opened(place) as (orbax, manager):
        for step in reversed(steps):
            try:
                record, arrays = _read(orbax, manager, step)
            except _DamagedError as damage:
                told = f"resume: {place / str(step)} is damaged, and passed over: {damage}"
                warnings.warn(told, stacklevel=3)
            else:
                return _saved(place, record, arrays, optimizer)
    raise ValueError(f"resume: {place} holds no checkpoint that is whole")


def steps_in(folder: Path) -> list[int]:
    """The numbers of epochs that a folder has checkpoints of, from the first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


class _DamagedError(Exception):
    """A checkpoint cannot be read, or is not as it was written."""


def _read(orbax: Any, manager: Any, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the arrays of a checkpoint."""

    def restored(name: str, item: Any) -> Any:
        return manager.restore(step, args=orbax.args.Composite(**{name: item}))[name]

    try:
        record = restored("record", orbax.args.JsonRestore())
        arrays = restored("arrays", orbax.args.PyTreeRestore())
        digest = record.pop("digest")
        is_whole = digest == digest_of(record, arrays)
    except MemoryError:
        raise
    except Exception as error:  # of JSON, TensorStore or Orbax
        raise _DamagedError(str(error).partition("\n")[0][:100]) from None
    if not is_whole:
        raise _DamagedError("it has been changed since it was written")
    return record, arrays


def digest_of(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """The digest of a record, without one, and of arrays with their names, dtypes and shapes."""
    digest = sha256(json.dumps(record, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _saved(
    place: Path,
    record: dict[str, Any],
    arrays: dict[str, np.ndarray],
    optimizer: AnyOptimizer,
) -> Saved:
    """The contents of a whole checkpoint.  Raises ValueError where they do not fit."""
    if record["format"] != FORMAT:
        raise ValueError(f"resume: {place} holds {record['format']!r}, expected {FORMAT!r}")
    wide = [name for name, each in arrays.items() if jnp.asarray(each).dtype != each.dtype]
    if wide := [name for name in wide if not name.startswith("history")]:
        raise ValueError(
            f"resume: {place} holds {wide[0]} in {arrays[wide[0]].dtype}, and jax_enable_x64 is off"
        )
    params = _layers("params", arrays)
    template = jax.eval_shape(_init_of(optimizer), params)
    expected = named_leaves(template, "state")
    got = {name: each for name, each in arrays.items() if name.startswith("state")}
    if {name: _kind(leaf) for name, leaf in expected.items() if leaf.size} != {
        name: _kind(each) for name, each in got.items()
    }:
        raise ValueError(
            f"resume: the checkpoint in {place} is of another run: its optimizer had the state "
            f"{record['inputs']['optimizer']}, and this one has {short(template)}"
        )
    leaves = [_leaf(like, got.get(name)) for name, like in expected.items()]
    state = jax.tree.unflatten(jax.tree.structure(template), leaves)
    epochs = _epochs(record["epochs"], arrays)
    best = None
    if record["best"] is not None:
        (best,) = (epoch for epoch in epochs if epoch.number == record["best"])
        best = best._replace(params=_layers("best", arrays))
    done, diverged = record["epochs"], arrays.get("diverged")
    if diverged is not None:
        done = np.full(diverged.shape, done)
    run = Run(params, state, done, arrays["key"], diverged)
    return Saved(place, run, epochs, best, record["inputs"])


def _init_of(optimizer: Any) -> Any:
    """The function that makes the state of params; of ``fit_many`` they are those of N networks,
    and the optimiser is a function of the learning rate."""
    if hasattr(optimizer, "init"):
        return optimizer.init
    return jax.vmap(optimizer(0.1).init)


def _layers(root: str, arrays: dict[str, np.ndarray]) -> Params:
    count = sum(name.startswith(f"{root}[") for name in arrays) // len(Layer._fields)
    return tuple(
        Layer(*(jnp.asarray(arrays[f"{root}[{layer}].{field}"]) for field in Layer._fields))
        for layer in range(count)
    )


def _kind(leaf: Any) -> Any:
    """Shape and dtype of a leaf as it is written: a key is, by its numbers."""
    leaf = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return leaf.shape, leaf.dtype


def is_key(leaf: Any) -> bool:
    """Whether an array holds random keys, which are written as their numbers."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _leaf(like: Any, array: np.ndarray | None) -> Any:
    if array is None:  # one without any numbers, which is not written
        return jnp.zeros(like.shape, like.dtype)
    if is_key(like):
        impl = jax.random.key_impl(jnp.zeros((), like.dtype))
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    return jnp.asarray(array)


def _epochs(done: int, arrays: dict[str, np.ndarray]) -> tuple[Epoch, ...]:
    """The record of the last epochs done, from the arrays of its history."""
    history = {
        name.removeprefix("history."): each
        for name, each in arrays.items()
        if name.startswith("history.")
    }
    losses, count = history["training_loss"], history["training_loss"].shape[-1]
    kind: Any = float if losses.ndim == 1 else np.asarray  # of one network, or of N
    validated = "validation_loss" in history
    fields = [history.get(f"health.{field}") for field in Health._fields]
    return tuple(
        Epoch(
            number=done - count + place + 1,
            params=(),
            training_loss=kind(losses[..., place]),
            validation=Evaluation(
                kind(history["validation_loss"][..., place]), kind(history["metric"][..., place])
            )
            if validated
            else None,
            health=None if fields[0] is None else Health(*(each[place] for each in fields)),  # type: ignore[index]
        )
        for place in range(count)
    )


@contextmanager
def opened(folder: Path, keep: int | None = None, done: int = 0) -> Iterator[tuple[Any, Any]]:
    """Orbax, and its manager of the checkpoints in a folder.

    keep: how many stay, where it is to write; what is left of one that was not finished, and those
        of more than the epochs that are done, which are damaged, are then removed.

    Orbax logs what it raises too, at length and for each of its threads: that is left out.
    """
    orbax = importlib.import_module("orbax.checkpoint")
    log = logging.getLogger("absl")
    log.addFilter(_is_of_others)
    _leave_out_what_comes_late()
    try:
        options = orbax.CheckpointManagerOptions(
            preservation_policy=keep and orbax.checkpoint_managers.LatestN(int(keep)),
            create=False,
            cleanup_tmp_directories=keep is not None,
            lightweight_initialize=True,
            save_root_metadata=False,
            multiprocessing_options=_alone(orbax),
        )
        manager = orbax.CheckpointManager(folder.absolute(), options=options)
        if keep:
            for step in steps_in(folder):
                if step > done:
                    manager.delete(step)
        try:
            yield orbax, manager
        finally:
            manager.close()
    finally:
        log.removeFilter(_is_of_others)


def _alone(orbax: Any) -> Any:
    """Options by which Orbax waits for no other process: each reads by itself, and one writes."""
    own = jax.process_index()
    return orbax.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process {own}"
    )


def _is_of_others(record: logging.LogRecord) -> bool:
    """Whether a line for the log is not Orbax's."""
    return not re.search(r"[\\/]orbax[\\/]", record.pathname)


@cache
def _leave_out_what_comes_late() -> None:
    """After an error in one array TensorStore tells Python of the others, some time later, where
    nobody waits for them any more: in an event loop that Orbax has closed."""
    usual = sys.unraisablehook

    def tell(report: Any) -> None:
        if str(report.exc_value) != "Event loop is closed" or report.object is not None:
            usual(report)

    sys.unraisablehook = tell
