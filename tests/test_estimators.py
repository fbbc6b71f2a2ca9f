"""The estimators: scikit-learn's own answers, its own checks, and what it does not have."""

import inspect
import pickle
import re
from datetime import date

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxbp

pytest.importorskip("sklearn")

import joblib
from scipy import sparse
from sklearn import datasets, neural_network
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from jaxbp import estimators

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:scipy.optimize"),  # scikit-learn's own, by its version 1.6
]

X, CLASSES = datasets.load_iris(return_X_y=True)
X = (X - X.mean(axis=0)) / X.std(axis=0)
WEIGHT = np.linspace(0, 2, len(X))

#: targets by what is learned: the estimator's name, y and a parameter
TARGETS = {
    "classes": ("MLPClassifier", CLASSES, {}),
    "two classes": ("MLPClassifier", np.where(CLASSES == 1, 7, 5), {}),
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
    {"solver": "lbfgs", "max_iter": 5},
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
    """A classifier and a regressor by default, and the whole grid among the slow tests."""
    for place, target in enumerate(TARGETS):
        for number, training in enumerate(TRAININGS):
            slow = () if number == place and number == 0 else pytest.mark.slow
            yield pytest.param(target, training, marks=slow, id=f"{target}-{number}")


@pytest.mark.parametrize(("target", "training"), [*cases()])
def test_a_training_is_scikit_learns(target, training):
    name, y, parameter = TARGETS[target]
    dtypes = [np.float64] if training["solver"] == "lbfgs" else [np.float64, np.float32]
    if target == "outputs" and training["solver"] == "lbfgs":
        return  # the objective is another there: see the class's table
    fit = inspect.signature(getattr(neural_network, name).fit)
    weighted = {"sample_weight": WEIGHT} if "sample_weight" in fit.parameters else {}
    if parameter and not weighted:
        pytest.skip("scikit-learn has it from 1.7 on, as sample_weight")
    for dtype in dtypes:
        x, exact = X.astype(dtype), dtype == np.float64
        theirs, ours = (each.fit(x, y, **weighted) for each in both(name, **training, **parameter))
        tolerance = 1e-4 if not exact else 1e-6 if training["solver"] == "lbfgs" else 1e-10
        assert_alike(theirs, ours, tolerance)
        for method in {"predict", "predict_proba", "predict_log_proba"} & {*dir(theirs)}:
            right, got = (getattr(each, method)(x) for each in (theirs, ours))
            assert got.dtype == right.dtype
            if got.dtype.kind in "OU":
                assert (got == right).all()
            else:
                np.testing.assert_allclose(got, right, rtol=100 * tolerance, atol=tolerance)


@pytest.mark.slow
def test_a_training_goes_on_as_scikit_learns_does():
    """partial_fit goes on with the optimiser's state, warm_start with the parameters."""
    for name, y in (("MLPClassifier", CLASSES), ("MLPRegressor", X[:, 0])):
        classes = {"classes": [0, 1, 2]} if name == "MLPClassifier" else {}
        for solver in ("adam", "sgd"):
            theirs, ours = both(name, solver=solver, hidden_layer_sizes=4)
            for rows in (slice(0, 150), slice(0, 150), slice(50, 150)):
                for each in (theirs, ours):
                    each.partial_fit(X[rows], y[rows], **classes)
                ours = pickle.loads(pickle.dumps(ours))
            assert_alike(theirs, ours, 1e-10)
        theirs, ours = both(name, warm_start=True, hidden_layer_sizes=4, max_iter=3)
        for _ in range(2):
            for each in (theirs, ours):
                each.fit(X, y)
        assert_alike(theirs, ours, 1e-10)


@pytest.mark.slow
def test_another_number_compiles_nothing(caplog):
    """Neither a rate, nor a penalty, nor another fit of the shape, nor an epoch."""
    settings = {"hidden_layer_sizes": (7,), "max_iter": 4, "random_state": 0}
    for solver in ("sgd", "adam"):
        estimators.MLPClassifier(solver=solver, **settings).fit(X, CLASSES).predict(X)
        with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
            for given in (
                {"learning_rate_init": 0.2, "alpha": 0.0},
                {"alpha": 2.0, "momentum": 0.5, "beta_1": 0.5, "epsilon": 1e-3},
            ):
                estimators.MLPClassifier(solver=solver, **settings | given).fit(X, CLASSES)
                estimators.MLPClassifier(solver=solver, **settings).fit(X, CLASSES).predict(X[:150])
    assert "Compiling" not in caplog.text


@pytest.mark.slow
def test_a_training_ends_among_epochs_that_are_taken_at_once():
    """The parameters, and the generator of a user, are those after the epoch that ended it."""
    given, left = {"tol": 0.01, "n_iter_no_change": 2, "max_iter": 100}, []
    for each in both("MLPRegressor", **given, learning_rate_init=0.05):
        generator = np.random.RandomState(0)
        each.set_params(random_state=generator).fit(X, X[:, 0])
        left.append((each.coefs_[0], each.n_iter_, each.n_iter_ % 16, generator.randint(10**6)))
    assert left[0][1:] == left[1][1:]
    assert left[0][2] > 1  # in a block of 16
    np.testing.assert_allclose(left[0][0], left[1][0], rtol=1e-10)


def test_sparse_rows_and_data_frames():
    pandas = pytest.importorskip("pandas")
    settings = {"hidden_layer_sizes": (5,), "max_iter": 5, "random_state": 0}
    dense = estimators.MLPClassifier(**settings).fit(X, CLASSES)
    for rows in (sparse.csr_matrix(X), sparse.csc_array(X), pandas.DataFrame(X).add_prefix("c")):
        fitted = estimators.MLPClassifier(**settings).fit(rows, CLASSES)
        np.testing.assert_array_equal(fitted.predict_proba(rows), dense.predict_proba(X))
    assert fitted.feature_names_in_.tolist() == ["c0", "c1", "c2", "c3"]


@pytest.mark.slow
def test_large_sparse_rows_are_made_dense_by_minibatches(monkeypatch):
    settings = {"hidden_layer_sizes": (5,), "max_iter": 5, "random_state": 0, "batch_size": 40}
    for given in ({}, {"early_stopping": True}, {"solver": "sgd"}):
        dense = estimators.MLPClassifier(**settings, **given).fit(X, CLASSES, WEIGHT)
        with monkeypatch.context() as patch:
            patch.setattr("jaxbp.estimators.stochastic._LARGEST", 0)
            by_parts = estimators.MLPClassifier(**settings, **given)
            by_parts.fit(sparse.csc_matrix(X), CLASSES, WEIGHT)
        np.testing.assert_allclose(by_parts.coefs_[0], dense.coefs_[0], rtol=1e-10)
        np.testing.assert_allclose(by_parts.loss_curve_, dense.loss_curve_, rtol=1e-10)


@pytest.mark.slow
def test_coefficients_are_what_predicts():
    fitted = estimators.MLPRegressor(hidden_layer_sizes=5, max_iter=2).fit(X, X[:, 0])
    fitted.coefs_[-1][:] = 0
    fitted.intercepts_[-1][:] = 7
    assert (fitted.predict(X) == 7).all()
    assert fitted.predict(np.repeat(X, 60, axis=0)).shape == (9000,)  # in parts


# The parameters that scikit-learn does not have


@pytest.mark.slow
def test_class_weight_is_a_weight_by_class():
    settings = {"hidden_layer_sizes": (5,), "max_iter": 3, "random_state": 0}
    y, rows = np.where(CLASSES[20:120] > 0, "yes", "no"), X[20:120]
    weighted = estimators.MLPClassifier(class_weight="balanced", **settings).fit(rows, y)
    by_hand = estimators.MLPClassifier(**settings).fit(rows, y, jaxbp.class_weights(y))
    np.testing.assert_array_equal(weighted.coefs_[0], by_hand.coefs_[0])
    plain = estimators.MLPClassifier(**settings).fit(rows, y)
    assert (weighted.coefs_[0] != plain.coefs_[0]).any()
    with pytest.raises(ValueError, match="class_weight: got 'balanced', expected None or a weight"):
        weighted.partial_fit(rows, y)


@pytest.mark.slow
def test_activations_and_losses_of_this_package():
    settings = {"hidden_layer_sizes": (5,), "max_iter": 200, "solver": "lbfgs", "random_state": 0}
    named = estimators.MLPRegressor(activation="gelu", **settings).fit(X, X[:, 0])
    given = estimators.MLPRegressor(activation=jaxbp.activations.gelu, **settings).fit(X, X[:, 0])
    own = estimators.MLPRegressor(activation=jaxbp.with_slope(jax.nn.softplus), **settings)
    np.testing.assert_array_equal(named.coefs_[0], given.coefs_[0])
    assert min(named.score(X, X[:, 0]), own.fit(X, X[:, 0]).score(X, X[:, 0])) > 0.99
    y = X[:, 0].copy()
    y[::10] = 100  # which a squared error follows, and these do not
    for loss in ("huber", "absolute_error", jaxbp.heads.linear_huber):
        robust = estimators.MLPRegressor(loss=loss, activation="identity", **settings)
        far = np.abs(robust.fit(X, y).predict(X) - X[:, 0])[y != 100]
        assert far.max() < 1, loss
    wrong = estimators.MLPRegressor(activation=lambda a: (a, 2 * jnp.ones_like(a)), max_iter=1)
    with pytest.raises(ValueError, match="activation: the slope of"):
        wrong.fit(X, y)


@pytest.mark.slow
def test_smoothed_labels_dropout_and_an_optimiser_of_optax():
    settings = {"hidden_layer_sizes": (16,), "max_iter": 60, "random_state": 0}
    for y, labels in ((CLASSES, [0.8, 0.1, 0.1]), (CLASSES > 0, [0.85, 0.15])):
        smooth = estimators.MLPClassifier(label_smoothing=0.3, learning_rate_init=0.05, **settings)
        entropy = -np.dot(labels, np.log(labels))  # the least that the loss can be
        assert entropy < smooth.fit(X, y).loss_ < entropy + 0.1
    dropped, again, whole = (
        estimators.MLPClassifier(dropout=rate, **settings).fit(X, CLASSES) for rate in (0.5, 0.5, 0)
    )
    np.testing.assert_array_equal(dropped.coefs_[0], again.coefs_[0])
    assert dropped.loss_ > whole.loss_
    plain = {"momentum": 0, "learning_rate_init": 0.1}
    sgd = estimators.MLPClassifier(solver="sgd", **plain, **settings).fit(X, CLASSES)
    by_optax = estimators.MLPClassifier(optimizer=optax.sgd(0.1), **settings).fit(X, CLASSES)
    np.testing.assert_allclose(by_optax.coefs_[0], sgd.coefs_[0], rtol=1e-10)
    noisy = estimators.MLPClassifier(
        optimizer=optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)), **settings
    )
    noisy.partial_fit(X, CLASSES, classes=[0, 1, 2]).partial_fit(X, CLASSES)
    assert noisy.t_ == 300


@pytest.mark.slow
def test_callbacks_are_given_each_epoch_and_end_the_training():
    epochs = []

    def third(epoch):
        epochs.append(epoch)
        return epoch.number == 3

    for solver in ("adam", "lbfgs"):
        epochs.clear()
        fitted = estimators.MLPClassifier(
            hidden_layer_sizes=(5,), solver=solver, callbacks=[third], early_stopping=True
        ).fit(X, CLASSES)
        assert fitted.n_iter_ == len(epochs) == 3
        assert epochs[-1].training_loss == fitted.loss_
    adam = estimators.MLPClassifier((5,), callbacks=third, early_stopping=True).fit(X, CLASSES)
    with pytest.raises(TypeError, match=r"^callbacks: .* returned 1, expected True to end"):
        clone(adam).set_params(callbacks=lambda epoch: 1).fit(X, CLASSES)
    scored = [epoch.validation for epoch in epochs[3:]]
    assert adam.validation_scores_ == [each.metric for each in scored]
    assert adam.validation_loss_curve_ == [each.loss for each in scored]


@pytest.mark.slow
def test_mixed_precision():
    settings = {"hidden_layer_sizes": (16,), "max_iter": 30, "random_state": 0}
    rounded = estimators.MLPClassifier(compute_dtype=jnp.bfloat16, **settings)
    exact = estimators.MLPClassifier(**settings).fit(X.astype("f"), CLASSES)
    difference = rounded.fit(X.astype("f"), CLASSES).coefs_[0] - exact.coefs_[0]
    assert 0 < np.abs(difference).max() < 0.05


ON_ANOTHER_DEVICE = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import jax.numpy as jnp
import numpy as np
from jaxbp.estimators import MLPClassifier
seen = []
def where(epoch):
    seen.append(jnp.zeros(1).device.id)
x, y = np.eye(4), np.arange(4) % 2
default = MLPClassifier((3,), max_iter=2, random_state=0).fit(x, y)
there = MLPClassifier((3,), max_iter=2, random_state=0, device="cpu:1", callbacks=where).fit(x, y)
assert seen == [1, 1], seen
np.testing.assert_allclose(there.predict_proba(x), default.predict_proba(x))
"""


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of a CPU alone two devices can be made")
def test_another_device(python):
    python("-W", "ignore", "-c", ON_ANOTHER_DEVICE).ended()


@pytest.mark.slow
def test_verbose_says_what_scikit_learn_says(capsys):
    settings = {"verbose": True, "early_stopping": True, "n_iter_no_change": 1, "tol": 1.0}
    printed = []
    for each in both("MLPClassifier", solver="sgd", learning_rate="adaptive", **settings):
        each.fit(X, CLASSES)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "Setting learning rate to" in printed[1]
    estimators.MLPClassifier(solver="lbfgs", max_iter=2, verbose=1).fit(X, CLASSES)
    assert capsys.readouterr().out.startswith("Iteration 1, loss = ")


# Errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"solver": "rmsprop"}, "solver: got 'rmsprop', expected 'lbfgs' or 'sgd' or 'adam'"),
        ({"activation": "swish"}, "activation: got 'swish', expected 'logistic' or 'identity' or"),
        ({"alpha": -1}, "alpha: got -1, expected a number of at least 0"),
        ({"alpha": True}, "alpha: got True, expected a number of at least 0"),
        ({"batch_size": 0}, "batch_size: got 0, expected 'auto' or a whole number of at least 1"),
        ({"hidden_layer_sizes": (3, 0)}, r"hidden_layer_sizes: got \(3, 0\), expected whole"),
        ({"n_iter_no_change": 1.5}, "n_iter_no_change: got 1.5, expected a whole number of at"),
        ({"early_stopping": "no"}, "early_stopping: got 'no', expected True or False"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected a number of at least 0 and less than 1"),
        (
            {"dropout": 0.5, "solver": "lbfgs"},
            "dropout: got 0.5, expected none with solver='lbfgs'",
        ),
        ({"optimizer": "adam"}, "optimizer: got 'adam', expected an optax.GradientTransformation"),
        ({"callbacks": 3}, "callbacks: got 3, expected a function of a jaxbp.Epoch"),
        ({"compute_dtype": "float16"}, "compute_dtype: got 'float16', expected None, jax.numpy.b"),
        ({"device": 1}, "device: got 1, expected None or the name of a device, such as 'cpu'"),
        ({"device": "abacus:7"}, "device: got 'abacus:7', expected one of "),
        ({"class_weight": 2}, "class_weight: got 2, expected None, 'balanced' or a weight of at"),
        ({"class_weight": {0: 1, 1: -1}}, "class_weight: got {0: 1, 1: -1}, expected None, 'bal"),
        ({"label_smoothing": 2}, "label_smoothing: got 2, expected a number from 0 to 1"),
    ],
)
def test_a_wrong_parameter_is_named(given, message):
    for kind in (ValueError, TypeError):  # as scikit-learn's exception is both
        with pytest.raises(kind, match=f"^{message}"):
            estimators.MLPClassifier(**given).fit(X, CLASSES)


def test_wrong_data_are_named():
    fitted = estimators.MLPClassifier((4,), max_iter=1, warm_start=True).fit(X, CLASSES)
    with pytest.raises(
        ValueError, match=r"hidden_layer_sizes: got a network of .4, 5, 3., expected"
    ):
        fitted.set_params(hidden_layer_sizes=5).fit(X, CLASSES)
    for loss, y, message in [
        ("poisson", -CLASSES, "y: -1 in row 50, expected counts of at least 0"),
        (jaxbp.heads.sigmoid_logistic, CLASSES, "y: 2 in row 100, expected probabilities from 0"),
        (jaxbp.heads.softmax_cross_entropy, CLASSES // 2, "y: row 0 sums to 0, expected labels"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            estimators.MLPRegressor(loss).fit(X, y)
    regressor = estimators.MLPRegressor()
    hidden = np.ma.masked_less(X, 0)
    for name, function, given in (
        ("X", regressor.fit, (hidden, CLASSES)),
        ("y", fitted.fit, (X, np.ma.masked_equal(CLASSES, 2))),
        ("sample_weight", regressor.fit, (X, CLASSES, hidden[:, 0])),
        ("X", fitted.predict, (hidden,)),
    ):
        with pytest.raises(ValueError, match=f"^{name}: some values are masked"):
            function(*given)
    with pytest.raises(ValueError, match=r"^sample_weight: got -1\.0, expected at least 0"):
        regressor.fit(X, CLASSES, -np.ones(len(X)))
    for dates in (
        np.arange(150).astype("M8[s]"),
        list(np.arange(150).astype("m8[D]")),
        [date(2020, 1, 1)] * 150,
    ):
        rows = np.asarray(dates)[:, None]
        for name, function, given in (
            ("X", regressor.fit, (rows, CLASSES)),
            ("y", regressor.fit, (X, dates)),
            ("sample_weight", regressor.fit, (X, CLASSES, dates)),
            ("X", fitted.fit, (rows, CLASSES)),
            ("X", fitted.predict, (rows,)),
        ):
            with pytest.raises(TypeError, match=rf"^{name}: got (date|time).*, expected real num"):
                function(*given)
    with pytest.raises(ValueError, match="y: got NaT in row 1, expected labels"):
        fitted.fit(X[:2], np.array(["2020-01-01", "NaT"], "M8[D]"))
    with pytest.raises(ValueError, match="y: got text and other labels, expected labels of one"):
        fitted.fit(X[:4], np.array([1, "1", 1, "1"], object))
    with pytest.raises(ValueError, match="sample_weight: got a weight of zero for every row"):
        estimators.MLPRegressor().fit(X, CLASSES, np.zeros(len(X)))
    with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
        estimators.MLPRegressor(solver="sgd", learning_rate_init=1e9).fit(X, CLASSES)


@pytest.mark.slow
def test_a_warning_shows_the_line_of_the_user():
    for given in ({"max_iter": 1}, {"max_iter": 1, "solver": "lbfgs"}, {"batch_size": 151}):
        with pytest.warns() as warned:
            estimators.MLPClassifier((4,), **given).fit(X, CLASSES)
        assert {each.filename for each in warned} == {__file__}


@pytest.mark.slow
def test_ctrl_c_keeps_what_there_is():
    def interrupt(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="Training interrupted by user"):
        fitted = estimators.MLPClassifier((4,), callbacks=interrupt).fit(X, CLASSES)
    assert fitted.n_iter_ == 2
    assert fitted.partial_fit(X, CLASSES).n_iter_ == 1


# scikit-learn's own tests


#: checks that compile little
QUICK = [
    "check_parameters_default_constructible",
    "check_no_attributes_set_in_init",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimators_unfitted",
    "check_estimators_empty_data_messages",
    "check_estimators_nan_inf",
    "check_n_features_in_after_fitting",
]


@pytest.mark.parametrize("kind", [estimators.MLPClassifier, estimators.MLPRegressor])
@pytest.mark.slow
def test_some_checks_of_scikit_learn(kind):
    for check in QUICK:
        getattr(estimator_checks, check)(kind.__name__, kind(max_iter=5))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@estimator_checks.parametrize_with_checks(
    [estimators.MLPClassifier(max_iter=100), estimators.MLPRegressor(max_iter=100)]
)
def test_every_check_of_scikit_learn(estimator, check):
    check(estimator)


#: test of scikit-learn's that cannot apply, and why
NOT_OURS = {"test_gradient": "it differentiates scikit-learn's own _loss_grad_lbfgs"}

SCIKIT_LEARNS_TESTS = """
import pytest
from sklearn import neural_network
from jaxbp import estimators

neural_network.MLPClassifier = estimators.MLPClassifier
neural_network.MLPRegressor = estimators.MLPRegressor
from sklearn.neural_network.tests.test_mlp import *

@pytest.fixture
def global_random_seed():
    return 42
"""


@pytest.mark.slow
def test_scikit_learns_own_tests_pass(python, tmp_path):
    pytest.importorskip("sklearn.neural_network.tests.test_mlp")
    (tmp_path / "test_theirs.py").write_text(SCIKIT_LEARNS_TESTS)
    without = [f"--deselect=test_theirs.py::{name}" for name in NOT_OURS]
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", f"--rootdir={tmp_path}"]
    printed, _ = python("-m", "pytest", *options, *without, tmp_path / "test_theirs.py").ended()
    assert int(re.search(r"(\d+) passed", printed)[1]) > 45


@pytest.mark.slow
def test_in_what_scikit_learn_builds_around_an_estimator(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    pipeline = make_pipeline(
        StandardScaler().set_output(transform="pandas"),
        estimators.MLPClassifier((8,), solver="lbfgs", random_state=0),
    )
    search = GridSearchCV(pipeline, {"mlpclassifier__alpha": [1e-3, 1e3]}, n_jobs=2, cv=3)
    search.fit(frame, CLASSES)
    assert search.best_params_ == {"mlpclassifier__alpha": 1e-3}
    assert search.best_estimator_[-1].feature_names_in_.tolist() == list("abcd")
    assert "MLPClassifier" in search.best_estimator_._repr_html_()
    joblib.dump(search, tmp_path / "search.joblib")
    loaded = joblib.load(tmp_path / "search.joblib")
    np.testing.assert_array_equal(loaded.predict_proba(frame), search.predict_proba(frame))
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    predicted = cross_val_predict(clone(pipeline), frame, CLASSES, cv=folds)
    assert (predicted == CLASSES).mean() > 0.9
    calibrated = CalibratedClassifierCV(pipeline, cv=folds).fit(frame, CLASSES)
    assert calibrated.score(frame, CLASSES) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iris", "digits", "breast_cancer", "wine", "diabetes"])
def test_scores_are_scikit_learns(name):
    """The same seed is the same training; what is left is rounding, which trainings amplify."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    kind = "MLPRegressor" if name == "diabetes" else "MLPClassifier"
    scores = []
    for seed in range(10):
        train, test, y_train, y_test = train_test_split(x, y, random_state=seed)
        pair = both(kind, hidden_layer_sizes=(30,), max_iter=60, random_state=seed)
        scores.append([each.fit(train, y_train).score(test, y_test) for each in pair])
    theirs, ours = np.transpose(scores)
    assert abs(theirs.mean() - ours.mean()) < 0.01
