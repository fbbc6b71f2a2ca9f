"""The search for the best of a grid: GridSearchCV's results, from one call of fit_many."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import datasets, neural_network
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from jaxbp import estimators

slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, CLASSES = datasets.load_iris(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)
NAMES = np.array(["setosa", "versicolor", "virginica"])[CLASSES]
GRID = {"learning_rate_init": [0.1, 0.01], "alpha": [0.0, 3.0], "random_state": [3, 1]}
LABELS = np.stack([CLASSES > 0, CLASSES == 1], axis=1).astype(int)
NUMBERS = np.stack([X[:, 0], CLASSES], axis=1)


def both(name, y, *, cv=4, scoring=None, x=X, grid=GRID, **settings):
    """scikit-learn's search, and ours, after ``fit``; one minibatch is all rows of a fold."""
    settings = {"hidden_layer_sizes": (6,), "max_iter": 12} | settings
    theirs = GridSearchCV(
        getattr(neural_network, name)(tol=0, n_iter_no_change=1000, **settings),
        grid,
        cv=cv,
        scoring=scoring,
    )
    ours = getattr(estimators, f"{name}CV")(**grid, cv=cv, scoring=scoring, **settings)
    return theirs.fit(x, y), ours.fit(x, y)


def assert_alike(theirs, ours, tolerance=1e-4):
    """All that GridSearchCV leaves is there, and is the same."""
    assert ours.cv_results_.keys() == theirs.cv_results_.keys()
    assert ours.cv_results_["params"] == theirs.cv_results_["params"]
    for key, right in theirs.cv_results_.items():
        got = ours.cv_results_[key]
        if key.startswith("param_"):
            assert isinstance(got, np.ma.MaskedArray)
            assert got.tolist() == right.tolist()
        if key.endswith("_score"):
            np.testing.assert_allclose(got, right, rtol=tolerance, atol=tolerance, err_msg=key)
    assert ours.cv_results_["rank_test_score"].dtype == np.int32
    assert ours.best_params_ == theirs.best_params_
    assert (ours.best_index_, ours.n_splits_) == (theirs.best_index_, theirs.n_splits_)
    assert abs(ours.best_score_ - theirs.best_score_) < tolerance
    assert ours.refit_time_ > 0


def test_it_is_scikit_learns_search_where_a_minibatch_is_a_whole_fold():
    """Then the order of the rows is of no meaning; folds differ by a row, and classes are text."""
    theirs, ours = both("MLPClassifier", NAMES, scoring="neg_log_loss")
    assert_alike(theirs, ours)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    assert ours.predict(X).tolist() == theirs.predict(X).tolist()
    assert ours.classes_.tolist() == theirs.classes_.tolist()
    assert abs(ours.score(X, NAMES) - theirs.score(X, NAMES)) < 1e-4
    assert isinstance(ours.best_estimator_, estimators.MLPClassifier)


@slow
@pytest.mark.parametrize(
    ("name", "y", "settings"),
    [
        ("MLPClassifier", LABELS, {"solver": "sgd", "max_iter": 30}),
        ("MLPClassifier", CLASSES > 0, {"activation": "logistic", "scoring": "neg_log_loss"}),
        ("MLPRegressor", NUMBERS, {"solver": "sgd", "nesterovs_momentum": False}),
        ("MLPRegressor", X[:, 0], {"activation": "tanh", "cv": KFold(3, shuffle=True)}),
        (
            "MLPClassifier",
            CLASSES,
            {"x": X.astype("f"), "cv": [(range(0, 150, 2), range(1, 150, 2))]},
        ),
    ],
)
def test_whatever_is_learned(name, y, settings):
    if isinstance(settings.get("cv"), KFold):
        settings["cv"] = [*settings["cv"].split(X)]  # both see the same
    assert_alike(*both(name, y, **settings), tolerance=1e-3)


@slow
def test_minibatches_score_like_scikit_learns():
    """Within noise: of another order of the rows."""
    grid = GRID | {"alpha": [1e-4, 0.1]}
    theirs, ours = both("MLPClassifier", CLASSES, batch_size=16, max_iter=60, grid=grid)
    right, got = (each.cv_results_["mean_test_score"] for each in (theirs, ours))
    assert np.abs(right - got).max() < 0.04
    assert ours.best_estimator_.batch_size == 16


@slow
def test_weights_and_groups():
    """A weight of 2 is two equal rows, in training and in the score; groups are handed on."""
    weight = np.where(np.arange(150) % 3 == 0, 2.0, 1.0)
    groups = np.arange(150) % 7 // 2
    rows = np.repeat(np.arange(150), weight.astype(int))
    settings = {"scoring": "neg_log_loss", "cv": GroupKFold(3), **GRID, "max_iter": 10}
    weighted = estimators.MLPClassifierCV((6,), **settings).fit(X, NAMES, weight, groups)
    repeated = clone(weighted).fit(X[rows], NAMES[rows], groups=groups[rows])
    for key in ("mean_test_score", "split2_test_score"):
        np.testing.assert_allclose(
            weighted.cv_results_[key], repeated.cv_results_[key], rtol=1e-4, atol=1e-4
        )


@slow
def test_around_it_and_in_it():
    """In a pipeline, in another cross validation, with what scikit-learn has not, without refit."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    search = estimators.MLPClassifierCV(
        (6,),
        activation="gelu",
        learning_rate_init=(1e-5, 0.05),
        alpha=1e-3,
        random_state=np.random.RandomState(0),
        class_weight="balanced",
        dropout=0.1,
        label_smoothing=0.1,
        max_iter=60,
    )
    pipeline = make_pipeline(StandardScaler().set_output(transform="pandas"), search)
    assert cross_val_score(pipeline, frame, NAMES, cv=3).min() > 0.8
    fitted = pipeline.fit(frame, NAMES)[-1]
    assert fitted.feature_names_in_.tolist() == list("abcd")
    assert fitted.best_params_["learning_rate_init"] == 0.05
    without = clone(search).set_params(refit=False).fit(X, NAMES)
    assert without.best_params_["learning_rate_init"] == 0.05
    with pytest.raises(AttributeError, match="has no attribute 'predict'"):
        without.predict(X)


@slow
def test_a_network_that_diverges_has_no_score():
    rates = {"learning_rate_init": (0.01, 1e30), "solver": "sgd", "alpha": 0.0, "max_iter": 3}
    with pytest.warns(FitFailedWarning, match="5 of 10 networks diverged"):
        search = estimators.MLPRegressorCV(hidden_layer_sizes=4, **rates).fit(X, X[:, 0])
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]
    assert search.cv_results_["rank_test_score"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="5 of 5 networks diverged"):
        search.set_params(learning_rate_init=1e30).fit(X, X[:, 0])


@slow
def test_a_fold_that_cannot_be_scored_has_no_score():
    grid = {"alpha": (0.1, 1.0), "learning_rate_init": 0.01, "random_state": 0, "max_iter": 2}
    search = estimators.MLPClassifierCV((4,), scoring="neg_log_loss", **grid)
    few = np.where(CLASSES == 2, 1, CLASSES)
    few[:50], few[100:] = [0, *[1] * 49], [0, *[1] * 49]  # the second third has one class
    with (
        pytest.warns(UserWarning, match=r"scoring failed for 2 of 6 networks, .*: y_true contains"),
        pytest.warns(UserWarning, match="no combination has a score on every fold, and the first"),
    ):
        search.set_params(cv=KFold(3)).fit(X, few)
    assert np.isnan(search.cv_results_["split1_test_score"]).all()
    assert np.isfinite(search.cv_results_["split0_test_score"]).all()
    with pytest.raises(ValueError, match="y_true contains only one label"):
        search.fit(X, CLASSES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"solver": "lbfgs"}, "solver: got 'lbfgs', expected 'sgd' or 'adam'"),
        ({"refit": "accuracy"}, "refit: got 'accuracy', expected True or False"),
        ({"alpha": ()}, r"alpha: got \(\), expected a number or several"),
        ({"alpha": [1.0, -1.0]}, "alpha: got -1.0, expected a number of at least 0"),
        ({"learning_rate_init": "fast"}, "learning_rate_init: got 'fast', expected a number above"),
        ({"random_state": (0, 0.5)}, r"random_state: got \(0, 0.5\), expected a seed or several"),
        ({"max_iter": 0}, "max_iter: got 0, expected a whole number of at least 1"),
    ],
)
def test_a_wrong_parameter_is_named(given, message):
    for kind in (ValueError, TypeError):
        with pytest.raises(kind, match=f"^{message}"):
            estimators.MLPClassifierCV(**given).fit(X, CLASSES)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"^sample_weight: got -1\.0, expected at least 0"):
        estimators.MLPClassifierCV().fit(X, CLASSES, -np.ones(len(X)))


SMALL = {"learning_rate_init": (0.003, 0.03), "alpha": 1e-4, "max_iter": 60, "cv": 3}


@slow
@pytest.mark.filterwarnings("ignore")
@estimator_checks.parametrize_with_checks(
    [
        estimators.MLPClassifierCV((20,), **SMALL),
        estimators.MLPRegressorCV(hidden_layer_sizes=(20,), **SMALL),
    ]
)
def test_every_check_of_scikit_learn(estimator, check):
    check(estimator)
