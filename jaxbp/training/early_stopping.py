"""Early stopping: training ends where the validation loss no longer falls, and the best is kept."""

from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.training.records import Epoch


class EarlyStopping:
    """An ``on_epoch`` that ends the training after so many epochs without a better validation loss.

    patience: epochs without a better loss before training ends, at least 1; 10 unless given.
    min_delta: how much lower a loss must be to be better; 0 unless given.

    ``best`` is the last ``Epoch`` that was better than all before, and its params (Prechelt 1998).
    With ``fit_many`` each of the N networks has its own best epoch, of which number and params are
    stacked, and training ends where none gets better.  A new training starts anew.  Raises
    ValueError for other numbers and, when it is called, without validation data.

    >>> import optax
    >>> from jaxbp import MLP, Batch, activations, fit, heads
    >>> x = jnp.linspace(-1, 1, 32)[:, None]
    >>> train, validation = Batch(x[::2], x[::2] ** 2), Batch(x[1::2], x[1::2] ** 2)
    >>> model = MLP((1, 8, 1), activations.tanh, heads.linear_squared_error)
    >>> stopping = EarlyStopping(patience=5)
    >>> _, history = fit(model, train, optimizer=optax.adam(0.3), epochs=1000, batch_size=8,
    ...                  key=jax.random.key(0), validation=validation, on_epoch=stopping)
    >>> len(history.training_loss) - stopping.best.number
    5
    """

    def __init__(self, patience: int = 10, *, min_delta: float = 0.0) -> None:
        given: Any = patience
        if isinstance(given, bool) or not isinstance(given, Integral) or int(given) < 1:
            raise ValueError(f"patience: got {patience!r}, expected at least 1 epoch")
        given = min_delta
        if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= float(given) < np.inf:
            raise ValueError(f"min_delta: got {min_delta!r}, expected a number of at least 0")
        self.patience, self.min_delta = patience, min_delta
        self.best: Any = None  # an Epoch
        self.last = 0  # number of the last epoch that was seen

    def __repr__(self) -> str:
        return f"EarlyStopping(patience={self.patience}, min_delta={self.min_delta:g})"

    def __call__(self, epoch: Epoch) -> bool:
        """Whether training ends with this epoch."""
        epoch = epoch._replace(state=None, key=None)  # which would take memory
        if epoch.validation is None:
            raise ValueError("on_epoch: EarlyStopping needs validation data, as validation=")
        loss = np.asarray(epoch.validation.loss)
        goes_on, self.last = epoch.number == self.last + 1, epoch.number
        if self.best is None or not goes_on:
            number: Any = np.full(loss.shape, epoch.number) if loss.ndim else epoch.number
            self.best = epoch._replace(number=number)
        else:
            lowest = np.asarray(self.best.validation.loss)
            better = (loss < lowest - self.min_delta) | (np.isnan(lowest) & ~np.isnan(loss))
            self.best = _chosen(better, epoch, self.best)
        return self.stopped

    def go_on(self, best: Epoch | None, last: int) -> None:
        """Take up a run whose last epoch, and whose best of all, were these."""
        if best is not None:
            self.best, self.last = best, last

    @property
    def stopped(self) -> bool:
        """Whether the last epoch that was seen ended the training."""
        if self.best is None:
            return False
        return bool(np.all(self.last - np.asarray(self.best.number) >= self.patience))


def stopping_in(callbacks: tuple[Any, ...]) -> EarlyStopping | None:
    """The first of some functions that is early stopping; None where there is none."""
    return next((each for each in callbacks if isinstance(each, EarlyStopping)), None)


def _chosen(better: np.ndarray, new: Epoch, old: Epoch) -> Epoch:
    """The new epoch where it is better, and the old one elsewhere."""
    if better.all() and not better.ndim:
        return new
    if not better.any():
        return old

    def of_each(new: Any, old: Any) -> Any:
        here = better.reshape(better.shape + (1,) * (np.ndim(old) - better.ndim))
        numeric = jnp if isinstance(new, jax.Array) else np
        return numeric.where(here, new, old)

    chosen: Epoch = jax.tree.map(of_each, new, old)
    return chosen
