"""``MLPRegressor``."""

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils.validation import validate_data

from jaxbp.estimators.network import LOSSES, dense
from jaxbp.estimators.perceptron import (
    Perceptron,
    check_no_dates,
    of_stochastic_solvers,
)
from jaxbp.heads import Head
from jaxbp.model import MLP
from jaxbp.training.checks import check_target
from jaxbp.trees import check_no_mask


class MLPRegressor(RegressorMixin, Perceptron):  # type: ignore[misc]
    """A multilayer perceptron for numbers: scikit-learn's ``MLPRegressor``, compiled.

    loss: "squared_error" (½ the square), "poisson" (half the deviance, of counts, by eᵃ) or, as
        scikit-learn has none, "huber", "absolute_error" or a ``jaxbp.Head``; "squared_error" unless
        given.

    All other parameters, the attributes, and the table of meanings that differ, are those of
    ``MLPClassifier``, without class_weight and label_smoothing; a score is R².  With K > 1 outputs
    ``loss_curve_`` has the mean of their squared errors, as scikit-learn's has, and of other losses
    the sum.

    >>> import numpy as np
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> regressor = MLPRegressor(hidden_layer_sizes=20, solver="lbfgs", random_state=0)
    >>> round(regressor.fit(X, X.ravel() ** 2).score(X, X.ravel() ** 2), 2)
    1.0
    """

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int | str = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        optimizer: Any = None,
        callbacks: Any = None,
        compute_dtype: Any = None,
        device: str | None = None,
    ) -> None:
        given = dict(locals())  # by name, as scikit-learn clones an estimator
        self.__dict__.update({name: value for name, value in given.items() if name != "self"})

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Predict targets of rows X (N, D): (N,), or (N, K) for K > 1 outputs."""
        predicted = self._output(X)
        return predicted.ravel() if predicted.shape[1] == 1 else predicted

    @of_stochastic_solvers
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:  # noqa: N803
        """Take one epoch over X (N, D), y and weights (N,), from where the last call ended."""
        return self._fit(X, y, sample_weight, incremental=True)

    def _checked(self, X: Any, y: Any, *, incremental: bool, reset: bool) -> Any:  # noqa: N803
        for name, given in (("X", X), ("y", y)):  # scikit-learn would take what is below the mask
            check_no_mask(name, given)
        check_no_dates(X=X, y=y)
        x, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            y_numeric=True,
            dtype=(np.float64, np.float32),
            reset=reset,
        )
        y = dense(y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        y = y.reshape(len(y), -1)
        check_target(self._head(), y.shape[1], y, "y")
        return x, y, None

    def _targets(self, y: Any, dtype: Any) -> np.ndarray:
        targets: np.ndarray = y.astype(dtype, copy=False)
        return targets

    def _head(self) -> Head:
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    def _out_activation(self) -> str:
        return {"poisson": "exp"}.get(self.loss, "identity")

    def _loss_is_mean_of(self, model: MLP) -> int:
        """K for squared errors, of which scikit-learn's ``loss_curve_`` has the mean; else 1."""
        return model.sizes[-1] if self.loss == "squared_error" else 1

    def _score(self, y: Any, predicted: np.ndarray, weight: Any) -> float:
        if not np.isfinite(predicted).all():
            return float("nan")
        return float(r2_score(y, predicted, sample_weight=weight))
