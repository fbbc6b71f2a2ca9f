"""Source: where the rows of a training come from, memory or a stream."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxbp.gradient import Batch
from jaxbp.model import MLP, Params
from jaxbp.parallel import check_rows_are_dealt, spans_processes
from jaxbp.training.checks import check_concrete, checked_batch, checked_data
from jaxbp.training.metrics import Evaluation, check_metric, evaluation_on, evaluation_over
from jaxbp.training.stacks import laid_out
from jaxbp.training.streams import Batches, check_is_stream


def check_source(batch: Any, validation: Any, *, keep_best: bool) -> bool:
    """Whether the batch of ``fit`` is a stream.

    Raises TypeError, naming the argument, for what is neither, and for arrays under trace, and
    ValueError where the best epoch is to be kept, and there are no validation data.
    """
    for name, given in (("batch", batch), ("validation", validation)):
        if isinstance(given, Batch):
            check_concrete(**{name: given})
        elif given is not None or name == "batch":
            check_is_stream(given, name)
    if keep_best and validation is None:
        raise ValueError("keep_best: got True, and no validation data by which an epoch is best")
    return not isinstance(batch, Batch)


class Source(NamedTuple):
    """The rows to train on, and those to validate on."""

    rows: Batch  # all of them or, of a stream, the first batch
    stream: Batches | None  # None: they are in memory
    validation: Batch | Batches | None

    @classmethod
    def of(cls, batch: Any, validation: Any, done: int, epochs: int, mesh: Mesh | None) -> "Source":
        """The source that ``fit`` is given; streams are begun.

        batch, validation: as for ``fit``.
        done: epochs of the run that is resumed.
        epochs: in all.
        mesh: of the devices that train together; None: there is one.
        """
        streams = not all(each is None or isinstance(each, Batch) for each in (batch, validation))
        if mesh is not None and streams:
            check_rows_are_dealt(mesh)
        stream = None
        begun = partial(Batches, epochs=epochs - done, in_parts=spans_processes(mesh))
        if not isinstance(batch, Batch):
            stream = begun(batch, "batch", epoch=done + 1)
        if validation is not None and not isinstance(validation, Batch):
            validation = begun(validation, "validation", epoch=None)
        return cls(batch if stream is None else stream.first, stream, validation)

    @property
    def data(self) -> Batch | Batches:
        """All that is trained on."""
        return self.rows if self.stream is None else self.stream

    def checked(self, model: MLP, params: Params, precision: str | None) -> "Source":
        """The source, checked as far as its rows are there, with these on the device.

        Raises TypeError or ValueError, naming what does not fit.
        """
        if self.stream is None:
            rows, _ = checked_data(model, params, self.rows, None)
        else:
            rows = self.stream.checked_first(model, params)
        held = some = self.validation
        if isinstance(held, Batches):
            some = held.checked_first(model, params)
        elif held is not None:
            held = some = checked_batch(model, params, held, "validation")
        if isinstance(some, Batch):
            check_metric(model, params, some, precision)
        return Source(rows, self.stream, held)

    def first_over(self, mesh: Mesh) -> "Source":
        """The source with the first batch of a stream over a mesh, as all of them will be."""
        if self.stream is None:
            return self
        (rows,) = laid_out([self.rows], mesh, "batch")
        return self._replace(rows=rows)

    def evaluation(
        self, model: MLP, params: Params, precision: str | None, mesh: Mesh | None
    ) -> Callable[[Params], Evaluation] | None:
        """The evaluation of params like these on the rows to validate on, if there are any."""
        if self.validation is None:
            return None
        if isinstance(self.validation, Batches):
            return evaluation_over(model, params, self.validation, precision, mesh)
        return evaluation_on(model, params, self.validation, precision)
