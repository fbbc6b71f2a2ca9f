"""Inputs of a run: what its epochs are a function of, as a checkpoint remembers it.

``fit(..., resume=folder)`` compares those of the checkpoint with its own: in words and numbers
where there are some, data and programs by their digests (SHA-256).
"""

import re
import warnings
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.extend.core import Literal
from jax.typing import DTypeLike

from jaxbp.gradient import Batch
from jaxbp.model import MLP, Params
from jaxbp.parallel import is_readable
from jaxbp.reprs import short
from jaxbp.training.constants import Lifted
from jaxbp.training.epoch import Program, in_dtype_of
from jaxbp.trees import opened, subjaxprs

Inputs = dict[str, Any]  # as JSON has them; what is None or absent is not compared

_PROGRAMS = ("optimizer's program", "gradient's program")
_STREAM = "a stream's"
_WHERE = "where"  # versions and device, by which the last bits may differ


def inputs_of(
    model: MLP,
    program: Program,
    lifted: Lifted,
    data: Inputs,
    batch: Batch,
    params: Params,
    key: Array | None,
    compute_dtype: DTypeLike | None,
) -> Inputs:
    """Describe the inputs of a run.

    model: the network, with its l2.
    program: of an epoch.
    lifted: the optimiser without its numbers, and they.
    data: what it is trained and validated on, by ``data_of``.
    batch: all rows or, of a stream, the first ones.
    params: to start from.
    key: for a random gradient, or None.
    compute_dtype: as for ``fit``.
    """

    is_stream = data["data"] == _STREAM
    count = 1 if is_stream else program.batch_size  # its batches may be of any size

    def gradient(params: Params, batch: Batch, *key: Array) -> Any:
        rows = in_dtype_of(params, jax.tree.map(lambda array: array[:count], batch))
        keywords = dict(zip(("key",), key, strict=False))
        return program.gradient(model, params, rows, **keywords)

    drawn_with = () if key is None else (key,)
    programs = lifted.optimizer.traced, _traced(gradient, params, batch, *drawn_with)
    return {
        **network_of(model),
        **data,
        "batch_size": _STREAM if is_stream else program.batch_size or "all",
        "optimizer": _without_addresses(short(lifted.state)),
        "optimizer's numbers": [_listed(each) for each in jax.tree.leaves(lifted.numbers)],
        "compute_dtype": "none" if compute_dtype is None else str(jnp.dtype(compute_dtype)),
        "precision": program.precision or "none",
        "diagnostics": program.diagnostics,
        **dict(zip(_PROGRAMS, map(_program_digest, programs), strict=True)),
        _WHERE: {
            "jax": jax.__version__,
            "optax": optax.__version__,
            "device": jax.default_backend(),
        },
    }


def network_of(model: MLP) -> Inputs:
    """The network, among the inputs."""
    described = _without_addresses(repr(model._replace(l2=0.0)))
    return {"network": described.removesuffix(", l2=0)") + ")", "l2": float(model.l2)}


def data_of(batch: Any, validation: Any) -> Inputs:
    """The data, as they are trained and validated on, among the inputs: a ``Batch``, or anything
    else for a stream, which is not compared, and None for no validation."""
    return {
        "data": _data_digest(batch),
        "validation": "none" if validation is None else _data_digest(validation),
    }


class AnotherRunError(ValueError):
    """A checkpoint is of another run; ``differs`` says in what."""

    def __init__(self, folder: Any, differs: str) -> None:
        super().__init__(
            f"resume: the checkpoint in {folder} is of another run: {differs}. To go on with it "
            "all the same, give resume=jaxbp.load_run(folder, optimizer)"
        )
        self.differs = differs


def check_inputs(folder: Any, saved: Inputs, given: Inputs) -> None:
    """Raise AnotherRunError, naming what differs, where a checkpoint is of another run.

    folder: of the checkpoint, for the message.
    saved: the checkpoint's inputs.
    given: those of the run that is to go on with it, or some of them.

    A UserWarning says where it was written by other versions, or on another kind of device: the
    programs are then not compared, and the last bits may differ.
    """
    common = [
        name for name, each in given.items() if each is not None and saved.get(name) is not None
    ]
    elsewhere = _WHERE in common and saved[_WHERE] != given[_WHERE]
    differing = [name for name in common if name != _WHERE and saved[name] != given[name]]
    worded = [name for name in differing if name not in _PROGRAMS]
    told = worded or ([] if elsewhere else differing)
    if told:
        said = "; ".join(_difference(name, saved[name], given[name]) for name in told)
        raise AnotherRunError(folder, said)
    if elsewhere:
        before, now = (
            ", ".join(f"{name} {value}" for name, value in each.items())
            for each in (saved[_WHERE], given[_WHERE])
        )
        warnings.warn(
            f"resume: the checkpoint in {folder} was written by {before}, and this is {now}: what "
            "follows may differ from the run that was begun there",
            stacklevel=4,
        )


def _data_digest(batch: Any) -> str | None:
    """Rows, and the SHA-256 of all values with their dtypes and shapes; or that it is a stream.

    It is None where other processes have some of the rows.
    """
    if not isinstance(batch, Batch):
        return _STREAM
    if not all(map(is_readable, batch)):
        return None
    digest = sha256()
    for name, array in batch._asdict().items():
        if array is not None:
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return f"{len(batch.x)} rows with the digest {digest.hexdigest()}"


def _difference(name: str, saved: Any, given: Any) -> str:
    if name in _PROGRAMS:
        return f"{name} is another one"
    if isinstance(saved, list) and isinstance(given, list) and len(saved) == len(given):
        saved, given = next(pair for pair in zip(saved, given, strict=True) if pair[0] != pair[1])
        name = f"one of the {name}"
    said = f"{name} was {_shortest(saved)}, and is {_shortest(given)}"
    return re.sub(r"([0-9a-f]{8})[0-9a-f]{56}", r"\1...", said)


def _shortest(value: Any) -> Any:
    """A float32 by the shortest text that reads back the same; anything else as it is."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    return str(rounded) if float(rounded) == value else value


def _listed(number: Any) -> Any:
    """A number as JSON has it, or the digest of an array."""
    is_key = jnp.issubdtype(jnp.result_type(number), jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(number) if is_key else number)
    return array.item() if array.ndim == 0 else sha256(array.tobytes()).hexdigest()


def _without_addresses(text: str) -> str:
    """The text without the addresses that Python prints of objects, another one in each process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _traced(function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    try:
        return (jax.make_jaxpr(function)(*arguments),)
    except Exception:  # of a function that is not for tracing: it is not compared
        return ()


def _program_digest(jaxprs: tuple[Any, ...]) -> str | None:
    """A digest of the operations of jaxprs, their numbers and constants; None without any."""
    if not jaxprs:
        return None
    digest = sha256()
    for jaxpr in jaxprs:
        for part in _parts(jaxpr):
            digest.update(f"{part} ".encode())
    return digest.hexdigest()


def _parts(jaxpr: Any) -> Iterator[Any]:
    """The parts of a jaxpr, in words that are the same in every process."""
    for constant in getattr(jaxpr, "consts", ()):
        yield _listed(constant)
    place: dict[Any, int] = {}
    for equation in opened(jaxpr).eqns:
        yield equation.primitive.name
        for operand in equation.invars:
            if isinstance(operand, Literal):
                yield f"{operand.aval}={_listed(operand.val)}"
            else:
                yield place.setdefault(operand, len(place))
        for result in equation.outvars:
            place[result] = len(place)
            yield result.aval
        for inner in subjaxprs(equation):
            yield from _parts(inner)
