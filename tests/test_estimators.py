"""The estimators: scikit-learn's own answers, its own checks, and what it does not have."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import neural_network
from sklearn.datasets import load_iris

from jaxbp import estimators

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, CLASSES = load_iris(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)
WEIGHT = np.linspace(0, 2, len(X))

#: targets by what is learned: the estimator's name, y and a parameter
TARGETS = {
    "classes": ("MLPClassifier", CLASSES, {}),
    "two classes": ("MLPClassifier", np.array(["no", "yes"])[(CLASSES == 1).astype(int)], {}),
    "labels": ("MLPClassifier", np.stack([CLASSES > 0, CLASSES == 1], axis=1).astype(int), {}),
    "numbers": ("MLPRegressor", X[:, 0] + CLASSES, {}),
    "outputs": ("MLPRegressor", np.stack([X[:, 0], CLASSES], axis=1), {}),
    "counts": ("MLPRegressor", CLASSES, {"loss": "poisson"}),
}
ADAPTIVE = {"learning_rate": "adaptive", "learning_rate_init": 0.1, "tol": 0.01, "max_iter": 60}
#: settings of a training
TRAININGS = [
    {"solver": "adam", "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3},
    {"solver": "adam", "early_stopping": True, "activation": "logistic"},
    {"solver": "adam", "batch_size": 40, "shuffle": False, "alpha": 1.0, "activation": "tanh"},
    {"solver": "sgd", "momentum": 0.5, "batch_size": 64},
    {"solver": "sgd", "nesterovs_momentum": False, "activation": "identity"},
    {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.5, "power_t": 0.2},
    {"solver": "sgd"} | ADAPTIVE,
    {"solver": "sgd", "early_stopping": True, "n_iter_no_change": 3} | ADAPTIVE,
    {"solver": "lbfgs", "max_iter": 10},
]


def both(name, **settings):
    """scikit-learn's estimator, and ours."""
    settings = {"hidden_layer_sizes": (6, 5), "max_iter": 15, "random_state": 3} | settings
    return [getattr(module, name)(**settings) for module in (neural_network, estimators)]


def assert_alike(theirs, ours, tolerance):
    """All that a training leaves is the same."""
    assert vars(theirs).keys() - {"_best_coefs", "_best_intercepts"} <= {*vars(ours)} | PRIVATE
    for name in ("coefs_", "intercepts_"):
        for right, got in zip(getattr(theirs, name), getattr(ours, name), strict=True):
            assert got.dtype == right.dtype
            np.testing.assert_allclose(got, right, rtol=tolerance, atol=tolerance)
    for name in NUMBERS & {*vars(theirs)}:
        right, got = getattr(theirs, name), getattr(ours, name)
        if right is None or isinstance(right, str):
            assert got == right
        else:
            np.testing.assert_allclose(got, right, rtol=tolerance, atol=tolerance, err_msg=name)


PRIVATE = {"_coef_indptr", "_intercept_indptr", "loss"}
NUMBERS = {
    *("n_iter_", "t_", "n_layers_", "n_outputs_", "n_features_in_", "out_activation_"),
    *("loss_", "loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_"),
    "_no_improvement_count",
}


def cases():
    """One in some of the grid by default: every target and every training are among them."""
    for place, target in enumerate(TARGETS):
        for number, training in enumerate(TRAININGS):
            slow = () if number % len(TARGETS) == place else pytest.mark.slow
            yield pytest.param(target, training, marks=slow, id=f"{target}-{number}")


@pytest.mark.parametrize(("target", "training"), [*cases()])
def test_a_training_is_scikit_learns(target, training):
    name, y, parameter = TARGETS[target]
    dtypes = [np.float64] if training["solver"] == "lbfgs" else [np.float64, np.float32]
    if target == "outputs" and training["solver"] == "lbfgs":
        return  # the objective is another there: see the class's table
    for dtype in dtypes:
        x, exact = X.astype(dtype), dtype == np.float64
        theirs, ours = (
            each.fit(x, y, sample_weight=WEIGHT) for each in both(name, **training, **parameter)
        )
        tolerance = 1e-4 if not exact else 1e-6 if training["solver"] == "lbfgs" else 1e-10
        assert_alike(theirs, ours, tolerance)
        for method in {"predict", "predict_proba", "predict_log_proba"} & {*dir(theirs)}:
            right, got = (getattr(each, method)(x) for each in (theirs, ours))
            assert got.dtype == right.dtype
            if got.dtype.kind in "OU":
                assert (got == right).all()
            else:
                np.testing.assert_allclose(got, right, rtol=100 * tolerance, atol=tolerance)
