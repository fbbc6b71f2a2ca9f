"""Records of a training: its epochs, its history, and what its exceptions carry."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxbp.diagnostics.health import Health
from jaxbp.model import Params
from jaxbp.reprs import short
from jaxbp.text import Table, fields, html, significant
from jaxbp.training.curves import plotted, table_of
from jaxbp.training.metrics import Evaluation
from jaxbp.training.run import Run, run_of


class History(NamedTuple):
    """The record of a run, one entry an epoch."""

    training_loss: np.ndarray  # (epochs,) mean objective of the steps, each before its update
    validation_loss: np.ndarray | None  # (epochs,) after the epoch; None without validation data
    metric: np.ndarray | None  # (epochs,) accuracy or R² on the validation data, likewise
    health: Health | None = None  # each field (epochs, L); None without diagnostics
    run: Run | None = None  # what ``fit(..., resume=)`` goes on from; None after an exception

    def __repr__(self) -> str:
        return short(self._replace(run=None))

    def to_frame(self) -> Any:
        """A ``pandas.DataFrame``: epoch, training_loss, validation_loss, metric.

        It has a row an epoch, by fit_many a row a network and epoch, and no column for what was not
        validated.  Raises ModuleNotFoundError without pandas.
        """
        return table_of(self)

    def plot(self, axes: Any = None) -> Any:
        """Draw losses, and the metric at the right, by epoch -> matplotlib's Axes.

        axes are those to draw on; a new figure's unless given.  Raises ModuleNotFoundError without
        matplotlib.
        """
        return plotted(self, axes)

    def _repr_html_(self) -> str:
        shown = self._replace(run=None)
        return html(_table(shown) if self.training_loss.ndim == 1 else fields(shown))


class Epoch(NamedTuple):
    """The argument of ``on_epoch``: an epoch that has just ended."""

    number: int  # from 1
    params: Params  # after the epoch; they stay valid and may be kept
    training_loss: float
    validation: Evaluation | None
    health: Health | None = None  # each field (L,), with diagnostics
    state: optax.OptState | None = None  # of the optimiser, while on_epoch is called
    key: Array | None = None  # of ``fit``; the keys of ``fit_many``

    @property
    def run(self) -> Run:
        """The run that ``fit(..., resume=)`` goes on with: a copy, made while on_epoch is called.

        Raises RuntimeError later, when the optimiser's state has become that of another epoch.
        """
        if self.key is None:
            raise RuntimeError(f"epoch {self.number}: it has a run while fit calls on_epoch")
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state)):
            raise RuntimeError(f"epoch {self.number}: its run is there while on_epoch is called")
        loss = np.asarray(self.training_loss)
        diverged = np.isnan(loss) if loss.ndim else None
        state = jax.tree.map(jnp.copy, self.state)
        return run_of(self.params, state, self.number, self.key, diverged)

    def __repr__(self) -> str:
        return short(self._replace(state=None, key=None))

    def _repr_html_(self) -> str:
        return html(fields(self._replace(state=None, key=None)))


class NonFiniteLossError(ArithmeticError):
    """Training met a loss or a parameter that is not finite.

    ``epoch`` is the number of the epoch that broke, ``params`` are those before it (the initial
    ones, if it was the first), whose loss is finite, and ``history`` is the record up to there.
    That the last steps of an epoch broke is known in the next one, so ``on_epoch`` may have been
    called for ``epoch`` already.
    """

    def __init__(self, epoch: int, params: Params, history: History) -> None:
        super().__init__(
            f"epoch {epoch}: the loss or a parameter is no longer finite; the exception's params "
            f"are those after epoch {epoch - 1}. Try a learning rate ten times smaller, "
            "standardised inputs, or optax.clip_by_global_norm before the optimiser"
        )
        self.epoch, self.params, self.history = epoch, params, history


class TrainingInterrupt(KeyboardInterrupt):
    """Ctrl-C ended the training; what there is so far is not lost.

    ``epoch`` is the number of the epoch that it ended, ``params`` are those before it and
    ``history`` is the record up to there.
    """

    def __init__(self, epoch: int, params: Params, history: History) -> None:
        super().__init__(
            f"training ended by Ctrl-C in epoch {epoch}; the exception's params and history are "
            f"those after epoch {epoch - 1}. In a notebook they are sys.last_value.params and "
            "sys.last_value.history (import sys); in a program, catch jaxbp.TrainingInterrupt"
        )
        self.epoch, self.params, self.history = epoch, params, history


OnEpoch = Callable[[Epoch], Any] | Sequence[Callable[[Epoch], Any]] | None


@contextmanager
def carrying(so_far: Callable[[], tuple[int, Params, History]], done: int = 0) -> Iterator[None]:
    """Give what ends the training early what there is: epoch, params and history.

    done is the number of epochs before the first.

    Ctrl-C becomes a ``TrainingInterrupt``.  After the first epoch any other exception, such as a
    callback's, is given the three as attributes, unless it has one of that name.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise TrainingInterrupt(*so_far()) from None
    except (Exception, SystemExit) as error:
        epoch, params, history = so_far()
        given = {"epoch": epoch, "params": params, "history": history}
        if epoch > done + 1 and not any(hasattr(error, name) for name in given):
            vars(error).update(given)
            error.add_note(
                f"It ended the training in epoch {epoch}; the exception's params and history are "
                f"those after epoch {epoch - 1}"
            )
        raise


def callbacks_of(on_epoch: OnEpoch, name: str = "on_epoch") -> tuple[Callable[[Epoch], Any], ...]:
    """The functions that on_epoch, or the argument of that name, has.  Raises TypeError for what
    cannot be called."""
    if on_epoch is None:
        return ()
    callbacks = tuple(on_epoch) if isinstance(on_epoch, list | tuple) else (on_epoch,)
    for each in callbacks:
        if isinstance(each, type):
            raise TypeError(
                f"{name}: got the class {each.__name__}, expected an object of it, or a function"
            )
    if not all(map(callable, callbacks)):
        raise TypeError(f"{name}: got {on_epoch!r}, expected a function of an Epoch, or a list")
    return callbacks


def ask_to_end(
    callbacks: tuple[Callable[[Epoch], Any], ...], epoch: Epoch, name: str = "on_epoch"
) -> bool:
    """Call all functions, of the argument of that name; whether one of them returned True.

    Raises TypeError where one returns anything but True, False and None, such as a number that was
    not meant to end the training.
    """
    asked = False
    for callback in callbacks:
        answer = callback(epoch)
        if answer is None:
            continue
        if np.shape(answer) != () or getattr(answer, "dtype", np.dtype(type(answer))) != np.bool_:
            raise TypeError(
                f"{name}: {callback!r} returned {answer!r}, expected True to end the training, "
                "or else False or nothing"
            )
        asked |= bool(answer)
    return asked


def history_of(
    record: list[Epoch], *, networks: tuple[int, ...] = (), validated: bool, layers: int | None
) -> History:
    """The record of a run, or of many at once: epochs are the last axis.

    record: one entry an epoch, maybe none.
    networks: (N,) of many at once.
    validated: whether there are validation data.
    layers: of the network, with diagnostics; else None.
    """

    def column(values: list[Any]) -> np.ndarray:
        return np.array(values).reshape(len(values), *networks).T

    evaluations = [epoch.validation for epoch in record if epoch.validation is not None]
    health = None
    if layers is not None:
        columns = zip(*(epoch.health for epoch in record if epoch.health is not None), strict=True)
        stacked = (
            map(np.stack, columns) if record else [np.zeros((0, layers))] * len(Health._fields)
        )
        health = Health(*stacked)
    return History(
        training_loss=column([epoch.training_loss for epoch in record]),
        validation_loss=column([each.loss for each in evaluations]) if validated else None,
        metric=column([each.metric for each in evaluations]) if validated else None,
        health=health,
    )


def _table(history: History) -> Table:
    """A row an epoch, of ten epochs at most, the first and the last among them."""
    curves = {
        name: each for name, each in history._asdict().items() if isinstance(each, np.ndarray)
    }
    epochs = len(history.training_loss)
    shown = np.unique(np.linspace(0, epochs - 1, min(epochs, 10)).astype(int))
    rows = [(row + 1, *(curve[row] for curve in curves.values())) for row in shown]
    return Table(("epoch", *curves), [[significant(cell, 4) for cell in row] for row in rows])
