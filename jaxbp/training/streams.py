"""Streams: batches that come from elsewhere, and that memory need not hold together.

A stream is anything that gives the batches of an epoch anew each time it is iterated: a list, a
``DataLoader`` of PyTorch or Grain, Grain's ``IterDataset``, an object with ``__iter__``.  A batch
is a ``Batch``, ``(x, target)`` or ``(x, target, weight)``, of arrays of NumPy or JAX, of tensors,
or of whatever else NumPy or DLPack reads; each is one step.

A stream with a method ``set_epoch`` is told the number of each epoch before it, from 0, as the
samplers of PyTorch are: so its order can be a function of the epoch, as a run that is resumed needs
it.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.gradient import Batch
from jaxbp.model import MLP, Params
from jaxbp.reprs import short
from jaxbp.text import counted
from jaxbp.training.checks import (
    check_fit,
    check_values,
    in_dtype,
    is_known,
    numbers_of,
    remember,
)

Stream = Iterable[Any]  # of batches

_ANEW = "something that gives its batches anew each time it is iterated, such as a list"
_IN_MEMORY = 1  # DLPack's number of a CPU
_NONE = object()


class Batches:
    """The batches of a stream, read and checked an epoch at a time.

    ``first`` is the first one, as it came: it tells the widths and the dtype of all.
    """

    def __init__(
        self, stream: Any, name: str, *, epoch: int | None, epochs: int, in_parts: bool = False
    ) -> None:
        """Begin to read a stream.

        stream: as the user gave it.
        name: of its argument.
        epoch: the number of the first one that is read, from 1; None where they have none.
        epochs: how often it is read.
        in_parts: whether other processes have more rows of each batch, so that it may be empty
            here; False unless given.

        Raises TypeError or ValueError for what gives no batches, or gives them once and is read
        more often.
        """
        check_is_stream(stream, name)
        if isinstance(stream, Iterator) and epochs > 1:
            raise ValueError(
                f"{name}: got {type(stream).__name__}, which gives its batches once, and it is "
                f"read {epochs} times; expected {_ANEW}"
            )
        self._stream, self._name, self._least = stream, name, 0 if in_parts else 1
        self._kinds: set[Any] = set()  # of batches that fit
        self._begun: Any = self._opened(epoch)
        self.first: Batch = self._named(self._begun[1], self._place(1, epoch))

    def share(self, steps: int) -> float:
        """How much of an epoch so many steps are, where the stream knows its length; else 0."""
        try:
            return min(steps / max(len(self._stream), 1), 1.0)
        except TypeError:
            return 0.0

    def checked_first(self, model: MLP, params: Params) -> Batch:
        """The first batch, checked, on the device, in the dtype of params."""
        number, first, _ = self._begun
        on_device: Batch = jax.device_put(
            self.checked(first, self._place(1, number), model, params)
        )
        return on_device

    def epoch(self, number: int | None, model: MLP, params: Params) -> Iterator[Batch]:
        """The batches of an epoch, in the dtype of params: of NumPy, or on the device already.

        number: of the epoch; None where it has none.
        model: that they are for.
        params: arrays or shapes.

        Raises TypeError or ValueError for one that does not fit, naming it, and for none.
        """
        if self._begun is None or self._begun[0] != number:
            self._begun = self._opened(number)
        (_, first, rest), self._begun = self._begun, None
        rows, total, weighted = 0, 0.0, False
        for place, item in enumerate(chain((first,), rest), 1):
            batch = self.checked(item, self._place(place, number), model, params)
            rows += len(batch.x)
            weighted |= batch.weight is not None
            total += len(batch.x) if batch.weight is None else float(np.sum(batch.weight))
            yield batch
        if weighted and not total:
            raise ValueError(f"{self._of(number)}: all weights are 0")
        if weighted and number is not None and not 0.5 <= total / rows <= 2:
            warnings.warn(
                f"{self._of(number)}: the weights have the mean {total / rows:.3g}, and those of a "
                "stream count as they are: a mean of 1 leaves the learning rate its meaning",
                stacklevel=2,
            )

    def checked(self, item: Any, place: str, model: MLP, params: Params) -> Batch:
        """One batch, as it came, in the dtype of params; place is its own, for messages."""
        batch, dtype = self._named(item, place), jnp.result_type(params[0].weight)
        question = model.head.target, model.sizes[-1], dtype
        known = is_known(batch, question)
        try:
            numbers = batch if known else numbers_of(batch, "")
            kind = tuple((each.shape, each.dtype) for each in numbers if each is not None)
            if kind not in self._kinds:
                check_fit(model, params, numbers, "", least=self._least)
                self._kinds.add(kind)
            numbers = in_dtype(numbers, dtype, copy=False)
            if not known:
                check_values(model, numbers, "")
                remember(batch, question)
        except (TypeError, ValueError) as error:
            if type(error) not in {TypeError, ValueError}:  # JAX's own, of user's code
                raise
            raise type(error)(f"{place}: {error}") from None
        return Batch(*map(_where_it_is, batch, numbers))

    def _opened(self, number: int | None) -> tuple[int | None, Any, Iterator[Any]]:
        """The epoch's number, its first batch as it came, and an iterator of the others."""
        tell = getattr(self._stream, "set_epoch", None)
        if tell is not None and number is not None:
            tell(number - 1)
        rest = iter(self._stream)
        first = next(rest, _NONE)
        if first is _NONE:
            raise ValueError(f"{self._of(number)}: got no batch, expected {_ANEW}")
        return number, first, rest

    def _of(self, number: int | None) -> str:
        return self._name if number is None else f"{self._name}: epoch {number}"

    def _place(self, place: int, number: int | None) -> str:
        return f"{self._of(number)}, step {place}" if number else f"{self._name}: batch {place}"

    def _named(self, item: Any, place: str) -> Batch:
        """A batch, however it came, as a ``Batch``.

        Raises TypeError for anything else, and for what are no arrays.
        """
        if not isinstance(item, tuple | list) or not 2 <= len(item) <= 3:
            got = counted(len(item), "part") if isinstance(item, tuple | list) else short(item)
            raise TypeError(
                f"{place}: got {got}, expected jaxbp.Batch, (x, target) or (x, target, weight)"
            )
        names = Batch._fields[: len(item)]
        return Batch(
            *(_as_array(each, f"{place}: {of}") for of, each in zip(names, item, strict=True))
        )


def _as_array(values: Any, name: str) -> Any:
    """An array of NumPy or JAX.  Raises TypeError, with a name, for what is none."""
    if values is None or isinstance(values, np.ndarray):
        return values
    refused = f"{name}: got {type(values).__name__}, expected an array of real numbers"
    if isinstance(values, jax.Array):
        if not values.is_fully_addressable:
            raise TypeError(f"{refused} of this process alone, as each gives its own rows")
        return values
    try:
        array = _read(values)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(f"{refused}: {error}") from None
    if array.dtype == object:
        raise TypeError(refused)
    return array


def _read(values: Any) -> Any:
    """An array of NumPy; by DLPack one of JAX, where the values are on another device than a CPU,
    or NumPy has no such dtype, as PyTorch's bfloat16."""
    where = getattr(values, "__dlpack_device__", None)
    if where is None:
        return np.asarray(values)
    if where()[0] == _IN_MEMORY and hasattr(values, "__array__"):
        with suppress(TypeError):
            return np.asarray(values)
    return jax.dlpack.from_dlpack(values)


def _where_it_is(given: Any, checked: Any) -> Any:
    """The checked values; what JAX holds does not leave its device."""
    return given.astype(checked.dtype) if isinstance(given, jax.Array) else checked


def check_is_stream(stream: Any, name: str) -> None:
    """Raise TypeError, with the argument's name, for what cannot be a stream."""
    strange = isinstance(stream, str | bytes | Mapping | tuple | type) or hasattr(stream, "shape")
    if strange or not (hasattr(stream, "__iter__") or hasattr(stream, "__getitem__")):
        hint = ", or an object whose method __iter__ is that function" if callable(stream) else ""
        raise TypeError(
            f"{name}: got {type(stream).__name__}, expected jaxbp.Batch(x, target), or a stream of "
            f"batches, such as a list or a DataLoader{hint}"
        )


def rows_of_a_step(
    batch_size: int | EllipsisType | None,
    kernel: str,
    *,
    streamed: bool,
    diagnostics: bool,
) -> int | None:
    """The batch size of ``fit``: None of a stream, as each of its batches is a step.

    batch_size, kernel, diagnostics: as ``fit`` is given them.
    streamed: whether there is a stream.

    Raises TypeError where there is none and has to be, and ValueError for an argument that a stream
    cannot have.
    """
    if not streamed:
        if isinstance(batch_size, EllipsisType):
            raise TypeError("batch_size: got none, expected a positive int, or None for all")
        return batch_size
    refused = {
        f"batch_size: got {batch_size!r}": not (batch_size is None or batch_size is ...)
        and "none, as each of its batches is a step",
        f"kernel: got {kernel!r}": kernel in {"fused", "interpret"}
        and "auto or xla, as one kernel takes all rows of an epoch out of the GPU's memory",
        "diagnostics: got True": diagnostics
        and "False, as they are measured on rows spread over all",
    }
    for got, expected in refused.items():
        if expected:
            raise ValueError(f"{got} beside a stream, expected {expected}")
    return None
