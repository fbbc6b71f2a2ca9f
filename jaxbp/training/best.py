"""The best of many networks: ``best_of``."""

from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.model import Params
from jaxbp.reprs import short
from jaxbp.training.records import History


class Best(NamedTuple):
    """The network that ``best_of`` picked."""

    n: int  # its number among those that were trained, from 0
    params: Params
    history: History  # each field (epochs,), as fit's

    def __repr__(self) -> str:
        return short(self)


def best_of(params: Params, history: History, *, by: str | None = None) -> Best:
    """The best of N networks -> (n, params, history), the latter two without N in front.

    ``fit`` can go on with the run of that history.

    by: "validation_loss" or "training_loss", the smallest after the last epoch, or "metric", the
    largest; without it the validation loss, or the training loss where nothing was validated.
    A network that diverged is not chosen.  Raises TypeError for another history, and ValueError for
    a measure that it does not hold, for params of another number of networks, and where every
    network diverged.
    """
    if not isinstance(history, History):
        raise TypeError(f"history: got {type(history).__name__}, expected that of jaxbp.fit_many")
    if by is None:
        by = "training_loss" if history.validation_loss is None else "validation_loss"
    record = getattr(history, by, None) if by in _MEASURES else None
    if record is None:
        held = [name for name in _MEASURES if getattr(history, name) is not None]
        raise ValueError(f"by: got {by!r}, expected one of {', '.join(held)}, which history holds")
    if record.ndim != 2:
        raise ValueError(f"history: got {by} of shape {record.shape}, expected (N, epochs)")
    shapes = [jnp.shape(bias) for _, bias in params]
    if any(len(shape) != 2 or shape[0] != len(record) for shape in shapes):
        raise ValueError(
            f"params: got biases of shapes {shapes}, expected those of the {len(record)} networks "
            "of history"
        )
    last = np.where(np.isfinite(history.training_loss[:, -1]), record[:, -1], np.nan)
    if np.isnan(last).all():
        raise ValueError(f"history: each of the {len(last)} networks diverged")
    n = int(np.nanargmax(last) if by == "metric" else np.nanargmin(last))
    params, history = jax.tree.map(itemgetter(n), (params, history))
    if history.run is not None:
        run = history.run._replace(epochs=int(history.run.epochs), diverged=None)
        history = history._replace(run=run)
    return Best(n, params, history)


_MEASURES = ("training_loss", "validation_loss", "metric")
