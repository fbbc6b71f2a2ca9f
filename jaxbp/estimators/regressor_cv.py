"""``MLPRegressorCV``."""

from typing import Any

from sklearn.base import BaseEstimator, RegressorMixin

from jaxbp.estimators.regressor import MLPRegressor
from jaxbp.estimators.search import Search


class MLPRegressorCV(Search, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """``MLPRegressor`` with the learning rate, alpha and seed that score best on held-out rows.

    loss: as ``MLPRegressor`` has it; "squared_error" unless given.

    All other parameters, the attributes, and the table of meanings that differ, are those of
    ``MLPClassifierCV``, without class_weight and label_smoothing; folds are not stratified, and the
    score is R² unless given.

    >>> import numpy as np
    >>> X = np.linspace(-1, 1, 60)[:, None]
    >>> search = MLPRegressorCV(hidden_layer_sizes=20, learning_rate_init=(1e-6, 0.01), alpha=0.01,
    ...                         random_state=(0, 1), max_iter=100, cv=2)
    >>> search.fit(X, X.ravel() ** 2).cv_results_["param_random_state"].tolist()
    [0, 1, 0, 1]
    """

    _network = MLPRegressor

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        learning_rate_init: Any = (0.0001, 0.001, 0.01),
        alpha: Any = (0.0001, 0.01, 1.0),
        random_state: Any = None,
        cv: Any = None,
        scoring: Any = None,
        refit: bool = True,
        verbose: bool | int = False,
        solver: str = "adam",
        batch_size: int | str = "auto",
        max_iter: int = 200,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        dropout: float = 0.0,
        compute_dtype: Any = None,
    ) -> None:
        given = dict(locals())  # by name, as scikit-learn clones an estimator
        self.__dict__.update({name: value for name, value in given.items() if name != "self"})
