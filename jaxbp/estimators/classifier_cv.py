"""``MLPClassifierCV``."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from jaxbp.estimators.classifier import MLPClassifier
from jaxbp.estimators.search import Search, of_the_best


class MLPClassifierCV(Search, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """``MLPClassifier`` with the learning rate, alpha and seed that score best on held-out rows.

    Every combination of the three by every fold is a network, and all are trained at once, by
    ``jaxbp.fit_many``; the best combination is then trained on all rows.  It is what
    ``GridSearchCV`` of ``MLPClassifier`` does, with scores that are equal but for noise.

    learning_rate_init: a number or several; (0.0001, 0.001, 0.01) unless given.
    alpha: a number or several; (0.0001, 0.01, 1.0) unless given.
    random_state: a seed or several; None or a ``numpy.random.RandomState`` draw one.
    cv: the folds: their number, a splitter of scikit-learn's, or pairs of row numbers; None is 5,
        stratified.
    scoring: the name of a score or a function (estimator, X, y); None is the accuracy.
    refit: whether to train the best on all rows, which ``predict`` and ``score`` need; True.
    verbose: whether a bar is shown, by rich, as ``fit_many`` does with ``progress``; False.

    All other parameters are those of ``MLPClassifier``: hidden_layer_sizes, activation, solver,
    batch_size, max_iter, momentum, nesterovs_momentum, beta_1, beta_2, epsilon, class_weight,
    label_smoothing, dropout, compute_dtype.

    After ``fit``: ``cv_results_`` with ``GridSearchCV``'s keys, ``best_params_``, ``best_score_``,
    ``best_index_``, ``best_estimator_``, ``refit_time_``, ``n_splits_``, ``scorer_``, ``n_iter_``,
    ``classes_``, ``n_features_in_``, ``feature_names_in_``.

    Where a meaning differs:

    what                  GridSearchCV(MLPClassifier)           here
    epochs                max_iter, or fewer by tol             max_iter, of the best as well
    dtype of the search   that of the rows                      float32; the best: that of the rows
    minibatches           batch_size rows, the last fewer       as many, of one size
    classes of a fold     those of its training rows            all
    "balanced"            by a fold's training rows             by all rows
    mean_fit_time         of a network                          its share of the search
    a network diverges    its score is NaN                      its score is NaN
    sample_weight         in training                           in named scores as well

    With solver="lbfgs", early stopping or schedules, use ``GridSearchCV``.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> search = MLPClassifierCV((8,), learning_rate_init=(1e-6, 0.05), max_iter=20, cv=3,
    ...                          alpha=0.01, random_state=0).fit(X, y)
    >>> search.best_params_["learning_rate_init"], search.cv_results_["rank_test_score"].tolist()
    (0.05, [2, 1])
    """

    _network = MLPClassifier

    def __init__(
        self,
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
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
        compute_dtype: Any = None,
    ) -> None:
        given = dict(locals())  # by name, as scikit-learn clones an estimator
        self.__dict__.update({name: value for name, value in given.items() if name != "self"})

    @of_the_best
    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Probabilities (N, C) of rows X (N, D) by the best network."""
        check_is_fitted(self)
        probabilities: np.ndarray = self.best_estimator_.predict_proba(X)
        return probabilities

    @of_the_best
    def predict_log_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Logarithms of ``predict_proba``."""
        check_is_fitted(self)
        logarithms: np.ndarray = self.best_estimator_.predict_log_proba(X)
        return logarithms
