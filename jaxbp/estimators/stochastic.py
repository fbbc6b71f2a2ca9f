"""The solvers "sgd" and "adam", and any optimiser of optax: epochs of minibatches.

scikit-learn's training is followed to the letter, so that a seed gives its coefficients to
rounding: NumPy's generator draws the weights, the held-out rows and the orders, in this order; and
training ends where n_iter_no_change epochs in a row have not improved by tol.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import shuffle

from jaxbp.estimators.network import (
    batch_of,
    check_own_pieces,
    compiled_epochs,
    dense,
    evaluation,
    gradient_of,
    is_ours,
    params_of,
    rows_of,
    take,
)
from jaxbp.estimators.parameters import say
from jaxbp.estimators.updates import Rule, adam_numbers, momentum_numbers
from jaxbp.gradient import Batch
from jaxbp.model import MLP, Params
from jaxbp.training.constants import Constants, Given, Numbers, without_numbers
from jaxbp.training.epoch import Program, initial_state
from jaxbp.training.metrics import Evaluation
from jaxbp.training.progress import shown
from jaxbp.training.records import Epoch, ask_to_end, callbacks_of

_LARGEST = 2**30  # bytes of sparse rows made dense
_MOST_AT_ONCE = 16  # epochs
_SMALLEST_RATE = 1e-6  # at which learning_rate="adaptive" ends


@dataclass
class Optimisation:
    """The learning rate and the optimiser's state, with which ``partial_fit`` goes on."""

    learning_rate: float
    state: Any = None  # a tree of NumPy arrays; None: at the start


def train(
    estimator: Any, model: MLP, x: Any, y: Any, weight: Any, *, first: bool, incremental: bool
) -> None:
    """Train an estimator that has been started.

    estimator: its parameters say how, and its attributes say afterwards what came of it.
    model: the network, whose l2 is an argument of the epoch.
    x: (N, D) rows; sparse ones that would take much memory are made dense by minibatches.
    y: (N, K) targets as they came.
    weight: (N,) of the rows, or None.
    first: whether the record of the training begins anew.
    incremental: whether to take one epoch, from the state in which the last call left the
        optimiser.
    """
    dtype, early_stopping = estimator.coefs_[0].dtype, estimator.early_stopping
    if first or (getattr(estimator, "best_loss_", None) is None) != early_stopping:
        _begin_record(estimator)
    if not incremental or not hasattr(estimator, "_optimizer"):
        estimator._optimizer = Optimisation(float(estimator.learning_rate_init))
    is_large = np.prod(x.shape, dtype=float) * dtype.itemsize > _LARGEST
    x = x.tocsr() if sparse.issparse(x) and is_large else dense(x)
    x = x.astype(dtype, copy=False)
    rows, held_out = _split(estimator, y)
    training, validation = batch_of(x, estimator._targets(y, dtype), weight), None
    if held_out is not None:
        training, validation = (
            jax.tree.map(lambda array, chosen=chosen: array[chosen], training)
            for chosen in (rows, held_out)
        )
        y = y[held_out]
    if not sparse.issparse(x):
        training, validation = jax.device_put((training, validation))
    _descend(estimator, model, training, validation, y, incremental=incremental)


def _begin_record(estimator: Any) -> None:
    stops = estimator.early_stopping
    estimator.loss_curve_, estimator._no_improvement_count = [], 0
    estimator.best_loss_ = None if stops else np.inf
    estimator.best_validation_score_ = -np.inf if stops else None
    estimator.validation_scores_ = [] if stops else None
    estimator.validation_loss_curve_ = [] if stops else None
    estimator._best = list(estimator.coefs_), list(estimator.intercepts_)


def _split(estimator: Any, y: Any) -> tuple[Any, Any]:
    """The numbers of the rows to train on, and of those held out; None, None for all."""
    if not estimator.early_stopping:
        return None, None
    rows, held_out = train_test_split(
        np.arange(len(y)),
        random_state=estimator._random_state,
        test_size=estimator.validation_fraction,
        stratify=y if is_classifier(estimator) and y.shape[1] == 1 else None,
    )
    if len(held_out) < 2:
        raise ValueError(
            "The validation set is too small. Increase 'validation_fraction' or the size of your "
            "dataset."
        )
    return rows, held_out


def _batch_size(estimator: Any, rows: int) -> int:
    if estimator.batch_size == "auto":
        return min(200, rows)
    if estimator.batch_size > rows:
        warnings.warn(
            "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped",
            stacklevel=7,
        )
    return min(int(estimator.batch_size), rows)


def _descend(
    estimator: Any,
    model: MLP,
    training: Batch,
    validation: Batch | None,
    y: Any,
    *,
    incremental: bool,
) -> None:
    """Train for epochs, and keep the last parameters, or those that score best.

    estimator, model, incremental: as for ``train``.
    training, validation: rows with ``Weighted`` targets, on the device unless they are sparse;
        None: none are held out.
    y: the targets of the held-out rows as they came.
    """
    callbacks, best = callbacks_of(estimator.callbacks, "callbacks"), None
    watched = validation is not None or bool(callbacks) or incremental
    at_once = 1 if watched else _at_once(estimator, training)
    after = None
    estimator.n_iter_ = 0
    shows = estimator.verbose == "bar" and not incremental
    try:
        with shown(shows, 0, estimator.max_iter) as show:
            for loss, after in _epochs(estimator, model, training, at_once=at_once):
                _record(estimator, loss, training.x.shape[0])
                evaluation = None
                if validation is not None:
                    evaluation = _validate(estimator, model, after().params, validation, y)
                if _count_improvement(estimator) and validation is not None:
                    best = after().params
                show(estimator.n_iter_, loss, evaluation)
                ends = _ends(estimator)
                if callbacks:
                    on_host = jax.tree.map(np.asarray, after().params)
                    record = Epoch(estimator.n_iter_, on_host, estimator.loss_, evaluation)
                    ends |= ask_to_end(callbacks, record, "callbacks")
                if ends or incremental:
                    break
            else:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({estimator.max_iter}) reached "
                    "and the optimization hasn't converged yet.",
                    ConvergenceWarning,
                    stacklevel=5,
                )
    except KeyboardInterrupt:
        warnings.warn("Training interrupted by user.", stacklevel=5)
    if after is None:
        return  # interrupted before the end of an epoch
    params, state, random = after()
    estimator._optimizer.state = jax.tree.map(_on_host, state)
    if random is not None:
        estimator._random_state.set_state(random)
    take(estimator, params)
    if validation is not None:
        if best is not None:
            take(estimator, best)
            estimator._best = estimator.coefs_, estimator.intercepts_
        estimator.coefs_, estimator.intercepts_ = estimator._best


def _at_once(estimator: Any, training: Batch) -> int:
    """Epochs in one call, where nobody asks after each: a small network need not wait for Python.

    They are as many as multiply some 10⁸ numbers, so that Ctrl-C is heard, and few are in vain
    where training ends among them.  A rate that changes between epochs is set before each.
    """
    changes = estimator.solver == "sgd" and estimator.learning_rate != "constant"
    if changes or sparse.issparse(training.x):
        return 1
    weights: int = sum(coef.size for coef in estimator.coefs_)
    return max(1, min(_MOST_AT_ONCE, 10**8 // (len(training.x) * weights)))


class _After(NamedTuple):
    """An epoch that has ended: what a training can go on from, or end with."""

    params: Params
    state: Any  # of the optimiser
    random: Any  # the state of NumPy's generator, where it has drawn more since; else None


def _epochs(
    estimator: Any, model: MLP, training: Batch, *, at_once: int
) -> Iterator[tuple[float, Callable[[], _After]]]:
    """Train -> the loss of each epoch, and a function that gives what there is after it.

    estimator, model: as for ``train``.
    training: rows with ``Weighted`` targets, on the device unless they are sparse.
    at_once: epochs that one call of the program takes at most.

    Of several epochs at once only the last one's parameters are kept; those after another one are
    computed again from where the call began.
    """
    optimisation, draw = estimator._optimizer, estimator._random_state
    rows, params = training.x.shape[0], params_of(estimator.coefs_, estimator.intercepts_)
    size = _batch_size(estimator, rows)
    is_sparse = sparse.issparse(training.x)
    sample = rows_of(training, slice(0, size)) if is_sparse else training
    check_own_pieces(model, params, sample, size)
    optimizer, constants = _optimizer(estimator, params)
    gradient = gradient_of(estimator, estimator._loss_is_mean_of(model))
    program = Program(model, optimizer, gradient, size)
    key = jax.random.key(draw.randint(2**31 - 1)) if estimator.dropout else None
    state = optimisation.state
    if state is None:
        state = _initial_state(optimizer, params, constants)
    order, left, run = np.arange(rows), estimator.max_iter, None
    orders, drawn = np.zeros((at_once, rows), np.int32), [draw.get_state()] * at_once
    while left:
        count = min(at_once, left)
        for place in range(count):
            if estimator.shuffle:
                order = shuffle(order, random_state=draw)
                drawn[place] = draw.get_state()
            orders[place] = order
        constants = _with_rate(constants, optimisation.learning_rate)
        first = np.int32(len(estimator.loss_curve_) + 1)
        if run is None:
            given = params, state, sample, orders, first, np.int32(1), key, constants
            ours = is_ours(model) and optimizer.lifted
            run = compiled_epochs(program, *given, ours=ours)
        call = _Call(run, params, state, training, orders.copy(), first, size, key, constants)
        params, state, losses = call.epochs(count)
        for place, loss in enumerate(np.asarray(losses)[:count].tolist(), 1):
            if place == count:
                yield loss, partial(_After, params, state, None)
            else:
                yield loss, partial(call.after, place, drawn[place - 1])
        left -= count


@dataclass(frozen=True)
class _Call:
    """A call of the program of an epoch, which may be repeated for fewer epochs."""

    run: Callable[..., Any]
    params: Params
    state: Any  # of the optimiser
    training: Batch
    orders: np.ndarray  # (epochs, N)
    first: np.int32  # number of the first epoch
    size: int  # rows of a minibatch
    key: Any
    constants: Constants

    def epochs(self, count: int) -> tuple[Params, Any, Any]:
        """Take the first so many of the epochs -> (params, state, their losses)."""
        if sparse.issparse(self.training.x):
            return self._by_minibatches()
        return self._taken(
            self.params, self.state, self.training, self.orders, self.first, np.int32(count)
        )

    def after(self, count: int, random: Any) -> _After:
        """All that there is after the first so many."""
        params, state, _ = self.epochs(count)
        return _After(params, state, random)

    def _taken(self, *given: Any) -> tuple[Params, Any, Any]:
        taken: tuple[Params, Any, Any] = self.run(*given, self.key, self.constants)
        return taken

    def _by_minibatches(self) -> tuple[Params, Any, Any]:
        """Take an epoch, each minibatch dense by itself."""
        params, state, order, total = self.params, self.state, self.orders[0], 0.0
        starts = range(0, len(order), self.size)
        for number, start in enumerate(starts, 1 + len(starts) * (int(self.first) - 1)):
            minibatch = rows_of(self.training, order[start : start + self.size])
            within = np.arange(len(minibatch.x), dtype=np.int32)[None]
            marks = np.int32(number), np.int32(1)
            params, state, losses = self._taken(params, state, minibatch, within, *marks)
            total += len(minibatch.x) * float(losses[0])
        return params, state, np.array([total / len(order)])


def _optimizer(estimator: Any, params: Params) -> tuple[Any, Constants]:
    """The optimiser as a function of its numbers, and they with alpha."""
    dtype = params[0].weight.dtype
    alpha = np.asarray(estimator.alpha, dtype)
    if estimator.optimizer is not None:
        lifted = without_numbers(Given(estimator.optimizer), params)
        return lifted.optimizer, Constants(alpha, None, lifted.numbers)
    rule, numbers = rule_of(estimator)
    rate = np.asarray(estimator._optimizer.learning_rate, dtype)
    return rule, Constants(alpha, rate, (tuple(np.asarray(n, dtype) for n in numbers), ()))


def rule_of(estimator: Any) -> tuple[Rule, Numbers]:
    """The update rule of the solver, and its numbers but for the learning rate."""
    if estimator.solver == "adam":
        return Rule("adam"), adam_numbers(estimator.beta_1, estimator.beta_2, estimator.epsilon)
    return Rule("sgd", bool(estimator.nesterovs_momentum)), momentum_numbers(estimator.momentum)


def _on_host(leaf: Any) -> Any:
    """A leaf of the state as NumPy's, which a pickle keeps in its dtype; but for JAX's keys."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def _with_rate(constants: Constants, rate: float) -> Constants:
    """The constants with the learning rate of now, unless the optimiser has one of its own."""
    if constants.learning_rate is None:
        return constants
    return constants._replace(learning_rate=np.asarray(rate, constants.learning_rate.dtype))


def _initial_state(optimizer: Any, params: Params, constants: Constants) -> Any:
    if isinstance(optimizer, Rule):  # zeros, which need no program
        return optimizer(constants).init(params)
    return initial_state(optimizer)(params, constants)


def _record(estimator: Any, loss: float, rows: int) -> None:
    estimator.n_iter_ += 1
    estimator.t_ += rows
    estimator.loss_ = loss
    estimator.loss_curve_.append(loss)
    say(estimator, f"Iteration {estimator.n_iter_}, loss = {loss:.8f}")


def _validate(estimator: Any, model: MLP, params: Params, validation: Batch, y: Any) -> Evaluation:
    """Score the held-out rows, whose targets are y as they came."""
    of = model, estimator._loss_is_mean_of(model)
    predicted, loss = evaluation(of, params, validation)
    _, weight = validation.target
    on_host = None if weight is None else np.asarray(weight)
    score = estimator._score(y, predicted, on_host)
    estimator.validation_scores_.append(score)
    estimator.validation_loss_curve_.append(loss)
    say(estimator, f"Validation score: {score:f}")
    return Evaluation(loss=loss, metric=score)


def _count_improvement(estimator: Any) -> bool:
    """Count an epoch without an improvement by tol; whether it is the best so far."""
    if estimator.early_stopping:
        score, before = estimator.validation_scores_[-1], estimator.best_validation_score_
        stays, best = score < before + estimator.tol, score > before
        estimator.best_validation_score_ = score if best else before
    else:
        loss, before = estimator.loss_, estimator.best_loss_
        stays, best = loss > before - estimator.tol, loss < before
        estimator.best_loss_ = loss if best else before
    estimator._no_improvement_count = estimator._no_improvement_count + 1 if stays else 0
    return bool(best)


def _ends(estimator: Any) -> bool:
    """Set the learning rate of the next epoch; whether there is none."""
    optimisation = estimator._optimizer
    has_schedule = estimator.solver == "sgd" and estimator.optimizer is None
    schedule = estimator.learning_rate if has_schedule else "constant"
    if schedule == "invscaling":
        time = (estimator.t_ + 1) ** estimator.power_t
        optimisation.learning_rate = float(estimator.learning_rate_init) / time
    if np.isnan(estimator.loss_) and not estimator.early_stopping:
        return True  # a parameter is not finite, and none will be again
    if estimator._no_improvement_count <= estimator.n_iter_no_change:
        return False
    what = "Validation score" if estimator.early_stopping else "Training loss"
    said = (
        f"{what} did not improve more than tol={estimator.tol:f} for "
        f"{estimator.n_iter_no_change} consecutive epochs."
    )
    ends = schedule != "adaptive" or optimisation.learning_rate <= _SMALLEST_RATE
    if ends:
        said += " Stopping." if schedule != "adaptive" else " Learning rate too small. Stopping."
    else:
        optimisation.learning_rate /= 5
        estimator._no_improvement_count = 0
        said += f" Setting learning rate to {optimisation.learning_rate:f}"
    say(estimator, said)
    return ends
