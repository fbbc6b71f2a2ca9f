"""The part that both estimators share: the start, the call of a solver, the network's output."""

from collections.abc import Callable, Mapping
from datetime import date, timedelta
from itertools import pairwise
from numbers import Real
from typing import Any, TypeVar

import jax
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxbp import activations
from jaxbp.activations import Activation
from jaxbp.estimators import lbfgs, stochastic
from jaxbp.estimators.network import ACTIVATIONS, prediction
from jaxbp.estimators.parameters import check_parameters, device_named, hidden_sizes
from jaxbp.model import MLP
from jaxbp.trees import check_no_mask

Method = TypeVar("Method", bound=Callable[..., Any])


class Perceptron(BaseEstimator):  # type: ignore[misc]
    """A multilayer perceptron; ``MLPClassifier`` and ``MLPRegressor`` say what it predicts.

    They add ``_checked``, which checks rows and targets; ``_targets``, what the head is given for
    them; ``_head`` and ``_out_activation``; and ``_score``, for early stopping.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:  # noqa: N803
        """Train on rows X (N, D), targets y and the rows' weights (N,) -> self.

        Raises ValueError for what does not fit, TypeError for dates in place of numbers, and
        ValueError where the parameters are no longer finite.
        """
        return self._fit(X, y, sample_weight, incremental=False)

    def _fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any,
        *,
        incremental: bool,
    ) -> Any:
        check_parameters(self.get_params(deep=False))
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        x, y, by_class = self._checked(X, y, incremental=incremental, reset=first)
        weight = checked_weight(sample_weight, x)
        if by_class is not None:
            weight = by_class if weight is None else weight * by_class
        self._random_state = check_random_state(self.random_state)
        sizes = (x.shape[1], *hidden_sizes(self.hidden_layer_sizes), y.shape[1])
        if first:
            self._start(sizes, x.dtype)
        before = (*(len(coef) for coef in self.coefs_), len(self.intercepts_[-1]))
        if before != sizes:
            raise ValueError(
                f"hidden_layer_sizes: got a network of {sizes}, expected that of the previous "
                f"call, {before}, with warm_start or partial_fit"
            )
        solver = lbfgs if self.solver == "lbfgs" else stochastic
        device = jax.default_device(device_named(self.device))
        with jax.enable_x64(self.coefs_[0].dtype == np.float64), device:
            model = MLP(sizes, self._unit(), self._head())
            solver.train(self, model, x, y, weight, first=first, incremental=incremental)
        if not all(np.isfinite(part).all() for part in (*self.coefs_, *self.intercepts_)):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large "
                "values and need to be preprocessed."
            )
        return self

    def _start(self, sizes: tuple[int, ...], dtype: Any) -> None:
        """Draw weights and biases evenly within ±√(6 / (I + O)), with 2 for 6 before sigmoids."""
        self.n_iter_, self.t_ = 0, 0
        self.n_layers_, self.n_outputs_ = len(sizes), sizes[-1]
        self.out_activation_ = self._out_activation()
        self.coefs_: list[np.ndarray] = []
        self.intercepts_: list[np.ndarray] = []
        factor = 2.0 if self._unit() is activations.sigmoid else 6.0
        for fan_in, fan_out in pairwise(sizes):
            bound = np.sqrt(factor / (fan_in + fan_out))
            for parts, shape in ((self.coefs_, (fan_in, fan_out)), (self.intercepts_, fan_out)):
                drawn = self._random_state.uniform(-bound, bound, shape)
                parts.append(drawn.astype(dtype, copy=False))

    def _unit(self) -> Activation:
        named = isinstance(self.activation, str)
        unit: Activation = ACTIVATIONS[self.activation] if named else self.activation
        return unit

    def _output(self, X: Any) -> np.ndarray:  # noqa: N803
        """The output units ŷ (N, K) of rows X (N, D), by ``coefs_`` and ``intercepts_``."""
        check_is_fitted(self)
        check_no_mask("X", X)
        check_no_dates(X=X)
        x = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        sizes = (*(len(coef) for coef in self.coefs_), len(self.intercepts_[-1]))
        model = MLP(sizes, self._unit(), self._head())
        with jax.default_device(device_named(self.device)):
            return prediction(model, self.coefs_, self.intercepts_, x)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def of_stochastic_solvers(method: Method) -> Method:
    """A method that an estimator does not have with solver="lbfgs"."""
    decorated: Method = available_if(_is_stochastic)(method)
    return decorated


def _is_stochastic(estimator: Any) -> bool:
    """Whether the solver can go on from call to call; ``available_if`` shows why not."""
    if estimator.solver == "lbfgs":
        raise AttributeError(
            "partial_fit is only available for stochastic optimizers. lbfgs is not stochastic."
        )
    return True


def check_no_dates(**given: Any) -> None:
    """Raise TypeError for dates and durations, whose numbers depend on the unit they are kept in.

    given: arrays, lists or tables, by the argument's name.
    """
    for name, values in given.items():
        of_columns = getattr(values, "dtypes", None)
        dtypes = [*of_columns] if np.iterable(of_columns) else [getattr(values, "dtype", None)]
        has_rows = hasattr(values, "__getitem__") and not isinstance(values, Mapping)
        if has_rows and not any(hasattr(dtype, "kind") for dtype in dtypes):  # as in a list
            dtypes = [np.asarray(values[:1]).dtype]
        for dtype in dtypes:
            if getattr(dtype, "kind", None) in {"m", "M"}:
                raise TypeError(f"{name}: got {dtype}, expected real numbers")
        if any(getattr(dtype, "kind", None) == "O" for dtype in dtypes):
            for each in np.ravel(np.asarray(values, object)):
                if isinstance(each, date | timedelta) or hasattr(each, "to_timestamp"):
                    raise TypeError(f"{name}: got {type(each).__name__}, expected real numbers")


def checked_weight(sample_weight: Any, x: Any) -> np.ndarray | None:
    """The rows' weights (N,) in the dtype of x.

    Raises ValueError for another shape, for masked and negative ones, and where all are zero;
    TypeError for dates.
    """
    if sample_weight is None:
        return None
    check_no_mask("sample_weight", sample_weight)
    check_no_dates(sample_weight=sample_weight)
    if isinstance(sample_weight, Real):
        return np.full(x.shape[0], sample_weight, x.dtype)
    weight: np.ndarray = check_array(
        sample_weight, ensure_2d=False, dtype=x.dtype, input_name="sample_weight"
    )
    if weight.ndim != 1:
        raise ValueError(f"sample_weight: got shape {weight.shape}, expected one number a row")
    check_consistent_length(x, weight)
    if weight.min() < 0:
        raise ValueError(f"sample_weight: got {weight.min()}, expected at least 0")
    if not weight.any():
        raise ValueError("sample_weight: got a weight of zero for every row, expected one above it")
    return weight
