"""The search that ``MLPClassifierCV`` and ``MLPRegressorCV`` share: all networks of all folds, in
one call of ``fit_many``.

    networks        combination c of the grid, fold k  ->  number c·K + k
    an epoch        a fold's training rows, in ⌈R / batch_size⌉ minibatches of one size, where the
                    largest fold has R of them

Where the rows do not fill the minibatches, a row of weight 0 does, once more and again.  So one
program trains all folds, and a network takes as many steps as scikit-learn's.  Its initial weights
are scikit-learn's for that seed; its orders of the rows are not.
"""

import time
import warnings
from copy import copy
from functools import partial
from numbers import Integral
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from scipy.stats import rankdata
from sklearn.base import clone, is_classifier
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.metrics import check_scoring
from sklearn.model_selection import ParameterGrid, check_cv
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from jaxbp.estimators.network import dense, params_of, take
from jaxbp.estimators.parameters import InvalidParameterError, check_parameters, hidden_sizes
from jaxbp.estimators.perceptron import Method, checked_weight
from jaxbp.estimators.stochastic import rule_of
from jaxbp.estimators.updates import Rule
from jaxbp.gradient import Batch, backprop
from jaxbp.model import MLP, Params
from jaxbp.training.constants import Constants
from jaxbp.training.dropout import with_dropout
from jaxbp.training.many import fit_many
from jaxbp.training.records import History
from jaxbp.training.run import Run

#: parameters of the search, of which each may have several values
GRID = ("learning_rate_init", "alpha", "random_state")
#: parameters of the search that its networks do not have
_OF_SEARCH = {"cv", "scoring", "refit", "verbose"}


class Folds(NamedTuple):
    """The rows that each fold trains on and holds out, K folds."""

    training: list[np.ndarray]
    held_out: list[np.ndarray]


def _has_refit(search: Any) -> bool:
    if not search.refit:
        raise AttributeError("refit: got False, expected True for predictions of the best network")
    return True


def of_the_best(method: Method) -> Method:
    """A method that a search has with refit alone."""
    decorated: Method = available_if(_has_refit)(method)
    return decorated


class Search:
    """A grid of networks by folds; ``MLPClassifierCV`` and ``MLPRegressorCV`` say of which kind.

    They add ``_network``, the class of the estimator that is searched for.
    """

    _network: Any
    cv: Any
    scoring: Any
    refit: Any
    verbose: Any
    max_iter: Any
    get_params: Any

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any = None,
        groups: Any = None,
    ) -> Any:
        """Train all networks on all folds, score them, and train the best on all rows -> self.

        X: (N, D) rows.
        y: their targets.
        sample_weight: (N,) of the rows, in training and, where ``scoring`` is None or a name, in
            the scores; none unless given.
        groups: (N,) for a ``cv`` that splits by groups; none unless given.

        Raises ValueError for what does not fit, and where all networks diverge.
        """
        template, candidates = self._template()
        x, targets, by_class = template._checked(X, y, incremental=False, reset=True)
        given = weight = checked_weight(sample_weight, x)
        if by_class is not None:
            weight = by_class if weight is None else weight * by_class
        y = np.asarray(dense(y))
        y = y.ravel() if y.ndim == 2 and y.shape[1] == 1 else y
        splits = check_cv(self.cv, y, classifier=is_classifier(self)).split(x, y, groups)
        folds = Folds(*map(list, zip(*splits, strict=True)))
        self.n_splits_, self.scorer_ = len(folds.training), check_scoring(template, self.scoring)
        started = time.perf_counter()
        trained = _trained(
            template, candidates, x, targets, weight, folds, progress=bool(self.verbose)
        )
        seconds = (time.perf_counter() - started) / (len(candidates) * self.n_splits_)
        weighted = None if callable(self.scoring) else given
        scored = _scores(self, template, trained, x, y, weighted, folds)
        self.cv_results_ = _results(candidates, *scored, seconds)
        if np.isnan(self.cv_results_["mean_test_score"]).all():
            said = "no combination has a score on every fold, and the first is taken for the best"
            warnings.warn(said, UserWarning, stacklevel=2)
        self.best_index_ = int(self.cv_results_["rank_test_score"].argmin())
        self.best_score_ = float(self.cv_results_["mean_test_score"][self.best_index_])
        self.best_params_, self.n_iter_ = candidates[self.best_index_], self.max_iter
        for name in {"classes_", "n_features_in_", "feature_names_in_"} & vars(template).keys():
            setattr(self, name, getattr(template, name))
        if self.refit:
            started = time.perf_counter()
            best = clone(template).set_params(**self.best_params_)
            with warnings.catch_warnings():  # that max_iter was reached, as it is to be
                warnings.simplefilter("ignore", ConvergenceWarning)
                self.best_estimator_ = best.fit(X, y, sample_weight)
            self.refit_time_ = time.perf_counter() - started
        return self

    def _template(self) -> tuple[Any, list[dict[str, Any]]]:
        """A network without values of the grid, and the grid's, with the seeds as numbers."""
        given = self.get_params(deep=False)
        if given["solver"] == "lbfgs":
            raise InvalidParameterError("solver: got 'lbfgs', expected 'sgd' or 'adam'")
        if not isinstance(self.refit, bool | np.bool_):
            raise InvalidParameterError(f"refit: got {self.refit!r}, expected True or False")
        grid = {name: _values(name, given.pop(name)) for name in GRID}
        fixed = {name: value for name, value in given.items() if name not in _OF_SEARCH}
        template = self._network(**fixed, tol=0.0, n_iter_no_change=np.inf)
        candidates = list(ParameterGrid(grid))
        for candidate in candidates:
            check_parameters(
                template.get_params(deep=False) | candidate | {"verbose": given["verbose"]}
            )
        return template, candidates

    @of_the_best
    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Predict, by the best network, the targets of rows X (N, D)."""
        check_is_fitted(self)
        predicted: np.ndarray = self.best_estimator_.predict(X)
        return predicted

    @of_the_best
    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:  # noqa: N803
        """Score the best network, by ``scoring``, on rows X (N, D), targets y and weights (N,)."""
        check_is_fitted(self)
        weighted = {} if sample_weight is None else {"sample_weight": sample_weight}
        return float(self.scorer_(self.best_estimator_, X, y, **weighted))

    def __sklearn_tags__(self) -> Any:
        return self._network().__sklearn_tags__()


def _values(name: str, given: Any) -> list[Any]:
    """The values of a grid's parameter: a number may be given by itself; seeds are numbers."""
    if name == "random_state" and (given is None or hasattr(given, "randint")):
        return [int(check_random_state(given).randint(2**31 - 1))]
    values = [given] if np.ndim(given) == 0 else list(given)
    if name == "random_state" and not all(isinstance(seed, Integral) for seed in values):
        raise InvalidParameterError(f"{name}: got {given!r}, expected a seed or several")
    if not values:
        raise InvalidParameterError(f"{name}: got {given!r}, expected a number or several")
    return values


# Training


def _trained(
    template: Any,
    candidates: list[dict[str, Any]],
    x: Any,
    targets: Any,
    weight: np.ndarray | None,
    folds: Folds,
    *,
    progress: bool,
) -> tuple[Params, History]:
    """Train all networks in float32 by ``fit_many``.

    template: a network that has seen the targets.
    candidates: of the grid.
    x: (N, D) rows; sparse ones are made dense.
    targets: (N, K) as they came.
    weight: (N,) of the rows, or None.
    folds: of the rows.
    progress: whether to show a bar.
    """
    sizes = (x.shape[1], *hidden_sizes(template.hidden_layer_sizes), targets.shape[1])
    batch = Batch(dense(x).astype(np.float32), template._targets(targets, np.float32), weight)
    batch, rows, steps = _in_minibatches(template.batch_size, batch, folds)
    total = [len(each) if weight is None else weight[each].sum() for each in folds.training]
    grid = {name: [each[name] for each in candidates for _ in total] for name in GRID}
    rule, numbers = rule_of(template)
    optimizer = partial(_with_rate, rule, numbers)
    return fit_many(
        MLP(sizes, template._unit(), template._head()),
        batch,
        learning_rate=grid["learning_rate_init"],
        l2=np.array(grid["alpha"]) * np.tile(steps / np.array(total), len(candidates)),
        optimizer=optimizer,
        epochs=template.max_iter,
        batch_size=rows.shape[1] // steps,
        rows=np.tile(rows, (len(candidates), 1)),
        resume=_start(template, sizes, grid["random_state"], optimizer),
        gradient=with_dropout(template.dropout)(backprop) if template.dropout else backprop,
        compute_dtype=template.compute_dtype,
        progress=progress,
    )


def _in_minibatches(
    batch_size: int | str, batch: Batch, folds: Folds
) -> tuple[Batch, np.ndarray, int]:
    """Rows for an epoch of each fold -> (batch, their numbers (K, R), steps an epoch).

    The batch has one more row, of weight 0, where some are to be filled up.
    """
    largest = max(map(len, folds.training))
    steps = -(-largest // min(200 if batch_size == "auto" else int(batch_size), largest))
    width = -(-largest // steps) * steps
    filler = len(batch.x)
    rows = np.full((len(folds.training), width), filler)
    for own, training in zip(rows, folds.training, strict=True):
        own[: len(training)] = training
    if (rows == filler).any():
        weight = np.ones(filler, np.float32) if batch.weight is None else batch.weight
        x, target = (np.concatenate([each, each[:1]]) for each in (batch.x, batch.target))
        batch = Batch(x, target, np.append(weight, np.float32(0)))
    return batch, rows, steps


def _start(template: Any, sizes: tuple[int, ...], seeds: list[int], optimizer: Any) -> Run:
    """A run that has done no epoch, with the initial weights of scikit-learn's networks.

    template: a network, of which the attributes of a start are set.
    sizes: of the network.
    seeds: one a network.
    optimizer: a function of the learning rate; its states start as zeros.
    """
    drawn = {}
    for seed in seeds:
        if seed not in drawn:
            template._random_state = check_random_state(seed)
            template._start(sizes, np.float32)
            drawn[seed] = params_of(template.coefs_, template.intercepts_)
    state = jax.tree.map(
        lambda leaf: np.zeros((len(seeds), *leaf.shape), leaf.dtype),
        optimizer(0.0).init(drawn[seeds[0]]),
    )
    return Run(
        params=jax.tree.map(lambda *leaves: np.stack(leaves), *[drawn[seed] for seed in seeds]),
        state=state,
        epochs=np.zeros(len(seeds), int),  # type: ignore[arg-type]
        key=np.array([(0, seed) for seed in seeds], np.uint32),
        diverged=np.zeros(len(seeds), bool),
    )


def _with_rate(rule: Rule, numbers: Any, rate: Any) -> optax.GradientTransformation:
    return rule(Constants(None, rate, (numbers, ())))


# Scores


def _scores(
    search: Any,
    template: Any,
    trained: tuple[Params, History],
    x: Any,
    y: Any,
    weight: np.ndarray | None,
    folds: Folds,
) -> tuple[np.ndarray, np.ndarray]:
    """The score on the held-out rows, and the seconds it took, of every network: (C, K) each.

    search: whose scorer_ scores.
    template: a network of the kind.
    trained: all networks, and their history.
    x, y: (N, D) rows, and their targets as they came.
    weight: (N,) of the rows, or None.
    folds: of the rows.

    Raises ValueError where all networks diverged, and what the scorer raises for all; warns where
    it was some: their score is NaN.
    """
    params, history = jax.tree.map(np.asarray, trained)
    diverged = history.run.diverged
    if diverged.any():
        said = f"{diverged.sum()} of {len(diverged)} networks diverged: a loss is not finite"
        if diverged.all():
            raise ValueError(f"{said}; smaller values of learning_rate_init may help")
        warnings.warn(f"{said}; their scores are NaN", FitFailedWarning, stacklevel=3)
    scores, seconds = np.full(len(diverged), np.nan), np.zeros(len(diverged))
    network, failed = copy(template), list[Exception]()
    vars(network).pop("feature_names_in_", None)  # x has none any more
    for n in np.flatnonzero(~diverged):
        started = time.perf_counter()
        take(network, jax.tree.map(itemgetter(n), params))
        rows = folds.held_out[n % search.n_splits_]
        weighted = {} if weight is None else {"sample_weight": weight[rows]}
        try:
            scores[n] = search.scorer_(network, x[rows], y[rows], **weighted)
        except Exception as error:  # such as a held-out fold of one class
            failed.append(error)
        seconds[n] = time.perf_counter() - started
    if failed and len(failed) == (~diverged).sum():
        raise failed[0]
    if failed:
        said = f"scoring failed for {len(failed)} of {len(diverged)} networks, whose scores are NaN"
        warnings.warn(f"{said}: {failed[0]}", UserWarning, stacklevel=3)
    return scores.reshape(-1, search.n_splits_), seconds.reshape(-1, search.n_splits_)


def _results(
    candidates: list[dict[str, Any]], scores: np.ndarray, score_times: np.ndarray, seconds: float
) -> dict[str, Any]:
    """``cv_results_``, as ``GridSearchCV`` has it.

    candidates: C of the grid.
    scores: (C, K) by fold.
    score_times: (C, K) seconds.
    seconds: of the training, a network's share.
    """
    mean = scores.mean(axis=1)
    with np.errstate(invalid="ignore"):
        rank = rankdata(np.where(np.isnan(mean), np.inf, -mean), method="min")
    params = {
        f"param_{name}": np.ma.masked_array([each[name] for each in candidates], mask=False)
        for name in candidates[0]
    }
    return {
        "mean_fit_time": np.full(len(scores), seconds),
        "std_fit_time": np.zeros(len(scores)),
        "mean_score_time": score_times.mean(axis=1),
        "std_score_time": score_times.std(axis=1),
        **params,
        "params": candidates,
        **{f"split{k}_test_score": scores[:, k] for k in range(scores.shape[1])},
        "mean_test_score": mean,
        "std_test_score": scores.std(axis=1),
        "rank_test_score": rank.astype(np.int32),
    }
