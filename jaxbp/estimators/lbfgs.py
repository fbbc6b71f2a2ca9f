"""The solver "lbfgs": L-BFGS-B of SciPy (Byrd et al. 1995) on the compiled objective.

It runs in float64 whatever the rows' dtype, because its line search compares objectives that differ
in their last digits.
"""

import warnings
from typing import Any

import jax
import numpy as np
from scipy.optimize import OptimizeResult, minimize
from sklearn.exceptions import ConvergenceWarning

from jaxbp.estimators.network import (
    batch_of,
    check_own_pieces,
    dense,
    gradient_of,
    objective,
    packed,
    take,
    unpacked,
)
from jaxbp.estimators.parameters import say
from jaxbp.model import MLP
from jaxbp.training.progress import shown
from jaxbp.training.records import Epoch, ask_to_end, callbacks_of

_ENDED_BY_CALLBACK = 99  # SciPy's status


def train(
    estimator: Any, model: MLP, x: Any, y: Any, weight: Any, *, first: bool, incremental: bool
) -> None:
    """Train an estimator that has been started.

    estimator: its parameters say how, and its attributes say afterwards what came of it.
    model: the network, whose l2 is an argument of the objective.
    x: (N, D) rows; sparse ones are made dense.
    y: (N, K) targets as they came.
    weight: (N,) of the rows, or None.
    first, incremental: of no meaning here, as one call is a whole training.
    """
    callbacks, estimator.n_iter_ = callbacks_of(estimator.callbacks, "callbacks"), 0

    def ended(intermediate_result: OptimizeResult) -> None:
        estimator.n_iter_ += 1
        value = float(intermediate_result.fun)
        say(estimator, f"Iteration {estimator.n_iter_}, loss = {value:.8f}")
        show(estimator.n_iter_, value, None)
        params = unpacked(model.sizes, intermediate_result.x)
        if ask_to_end(callbacks, Epoch(estimator.n_iter_, params, value, None), "callbacks"):
            raise StopIteration

    shows = estimator.verbose == "bar"
    with jax.enable_x64(True), shown(shows, 0, estimator.max_iter) as show:
        targets = estimator._targets(y, np.float64)
        batch = jax.device_put(batch_of(dense(x), targets, weight))
        start = packed(estimator.coefs_, estimator.intercepts_)
        check_own_pieces(model, unpacked(model.sizes, start), batch, None)
        run = objective((model, gradient_of(estimator)))
        alpha = np.float64(estimator.alpha)

        def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = run(point, alpha, batch)
            return float(value), np.asarray(gradient)

        result = minimize(
            value_and_gradient,
            start,
            method="L-BFGS-B",
            jac=True,
            options={
                "maxfun": estimator.max_fun,
                "maxiter": estimator.max_iter,
                "gtol": estimator.tol,
            },
            callback=ended if estimator.verbose or callbacks else None,
        )
    estimator.n_iter_ = min(int(result.nit), estimator.max_iter)
    estimator.loss_ = float(result.fun)
    take(estimator, unpacked(model.sizes, result.x.astype(estimator.coefs_[0].dtype)))
    if result.status not in (0, _ENDED_BY_CALLBACK):
        warnings.warn(
            f"lbfgs has not converged after {estimator.n_iter_} iterations: {result.message}. "
            "More of them (max_iter, max_fun) or standardised inputs may help.",
            ConvergenceWarning,
            stacklevel=4,
        )
