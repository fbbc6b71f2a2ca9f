"""``MLPClassifier``."""

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import type_of_target, unique_labels
from sklearn.utils.validation import validate_data

from jaxbp import heads
from jaxbp.estimators.parameters import InvalidParameterError
from jaxbp.estimators.perceptron import (
    Perceptron,
    check_no_dates,
    of_stochastic_solvers,
)
from jaxbp.heads import Head
from jaxbp.model import MLP
from jaxbp.trees import check_no_mask


class MLPClassifier(ClassifierMixin, Perceptron):  # type: ignore[misc]
    """A multilayer perceptron for classes: scikit-learn's ``MLPClassifier``, compiled.

    Parameters, attributes and methods are those of scikit-learn's estimator of this name, with the
    same meaning; the same random_state gives the same coefficients to rounding.

    hidden_layer_sizes: units of each hidden layer; (100,) unless given.
    activation: of the hidden layers: "identity", "logistic", "tanh", "relu", another name of
        ``jaxbp.activations``, or a function a -> (h, slope); "relu" unless given.
    solver: "adam", "sgd", or "lbfgs" for all rows at once; "adam" unless given.
    alpha: L2 penalty, ½·alpha·Σ‖W‖² / rows of a minibatch (or the sum of their weights); 1e-4.
    batch_size: rows a step; "auto" is min(200, N).
    learning_rate: of "sgd": "constant"; "invscaling" is learning_rate_init / t^power_t after t
        rows; "adaptive" divides it by 5 where training would end, down to 1e-6.
    learning_rate_init: the learning rate at the start; 0.001.
    power_t: the exponent of "invscaling"; 0.5.
    max_iter: epochs at most, or iterations of "lbfgs"; 200.
    shuffle: whether each epoch has an order of its own; True.
    random_state: a seed or ``numpy.random.RandomState`` for weights, held-out rows and orders.
    tol, n_iter_no_change: training ends where that many epochs in a row (10) did not improve the
        loss, or the score with early_stopping, by tol (1e-4); for "lbfgs" the largest entry of the
        gradient at its end.
    verbose: whether to print the loss of every epoch; "bar" shows a bar instead, by rich.
    warm_start: whether ``fit`` starts from the last call's parameters.
    momentum, nesterovs_momentum: of "sgd", see ``jaxbp.estimators.updates``; 0.9, True.
    early_stopping: whether to hold out validation_fraction (0.1) of the rows, stratified, and to
        keep the parameters that score best on them.
    beta_1, beta_2, epsilon: of "adam"; 0.9, 0.999, 1e-8.
    max_fun: evaluations of the objective by "lbfgs" at most; 15000.

    What scikit-learn does not have, after them:

    class_weight: "balanced" or a weight by class, by which sample_weight is multiplied, as most
        estimators of scikit-learn take it: "balanced" counts rows, whatever their weights are.
    label_smoothing: s in (1 - s) y + s / C; 0.
    dropout: share of hidden units left out at random in training; 0.
    optimizer: an ``optax.GradientTransformation`` in place of the solver and its learning rate.
    callbacks: a function of ``jaxbp.Epoch``, or a list, called after every epoch; one that returns
        True ends the training.
    compute_dtype: of the products, such as ``jax.numpy.bfloat16``; see ``jaxbp.mixed_precision``.
    device: "cpu", "gpu", "gpu:1", ..., where to train and to predict; JAX's default unless given.

    After ``fit``: ``classes_``, ``coefs_`` (I, O) and ``intercepts_`` (O,), by which it predicts,
    ``loss_``, ``loss_curve_``, ``best_loss_``, ``n_iter_``, ``t_`` (rows seen), ``n_layers_``,
    ``n_outputs_``, ``out_activation_``, ``n_features_in_``, ``feature_names_in_``; with
    early_stopping ``validation_scores_``, ``best_validation_score_`` and, as scikit-learn has none,
    ``validation_loss_curve_``: the mean loss of the held-out rows, without the penalty.

    Where a meaning differs:

    what                      scikit-learn                          here
    a certain, wrong class    loss cut at -ln ε: 36, or 16 (f32)    exact, from the logits
    loss not a number         trains on to max_iter, then raises    raises after that epoch
    minibatch of weights 0    raises ZeroDivisionError              moves by the penalty alone
    "lbfgs", float32 rows     at rounded points, float64 coefs_     in float64, float32 coefs_
    "lbfgs", K > 1 outputs    minimises the squared errors' mean    minimises their sum, along its
    of a regressor            along the gradient of their sum       own gradient
    sparse rows               multiplied as they are                made dense; by minibatches where
                                                                    they would take 1 GiB or more
    optimizer, set again      keeps the rate of the first call      takes all but the rate of "sgd"
    between partial_fits                                            and "adam"

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = MLPClassifier((20,), solver="lbfgs", random_state=0).fit(X, y)
    >>> round(classifier.score(X, y), 2)
    0.99
    """

    loss = "log_loss"

    def __init__(
        self,
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
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        dropout: float = 0.0,
        optimizer: Any = None,
        callbacks: Any = None,
        compute_dtype: Any = None,
        device: str | None = None,
    ) -> None:
        given = dict(locals())  # by name, as scikit-learn clones an estimator
        self.__dict__.update({name: value for name, value in given.items() if name != "self"})

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Predict the classes of rows X (N, D): (N,), or labels (N, K) where there are several."""
        predicted = self._output(X)
        decided = predicted.ravel() if self.n_outputs_ == 1 else predicted
        classes: np.ndarray = self._label_binarizer.inverse_transform(decided)
        return classes

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Probabilities (N, C) of rows X (N, D), by class as in ``classes_``.

        Of several labels a row they do not sum to 1.
        """
        predicted = self._output(X)
        if self.n_outputs_ > 1:
            return predicted
        return np.hstack([1 - predicted, predicted])

    def predict_log_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Logarithms of ``predict_proba``; -∞ where a probability is rounded to 0."""
        with np.errstate(divide="ignore"):
            logarithm: np.ndarray = np.log(self.predict_proba(X))
        return logarithm

    @of_stochastic_solvers
    def partial_fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any = None,
        classes: Any = None,
    ) -> Any:
        """Take one epoch over X (N, D), y and weights (N,), from where the last call ended.

        classes are all that there will be; the first call needs them.  Raises ValueError where they
        are missing then, or are others later.
        """
        if self.class_weight == "balanced":
            raise InvalidParameterError(
                "class_weight: got 'balanced', expected None or a weight by class with "
                "partial_fit, as it does not see all rows"
            )
        known = getattr(self, "classes_", None)
        if classes is None and known is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if known is None:
            labels = y if type_of_target(y).startswith("multilabel") else unique_labels(classes)
            self._binarize(labels)
        elif classes is not None and not np.array_equal(known, unique_labels(classes)):
            raise ValueError(
                f"`classes={classes!r}` is not the same as on last call to partial_fit, was: "
                f"{known!r}"
            )
        return self._fit(X, y, sample_weight, incremental=True)

    def _binarize(self, y: Any) -> None:
        self._label_binarizer = LabelBinarizer().fit(y)
        self.classes_ = self._label_binarizer.classes_

    def _checked(self, X: Any, y: Any, *, incremental: bool, reset: bool) -> Any:  # noqa: N803
        for name, given in (("X", X), ("y", y)):  # scikit-learn would take what is below the mask
            check_no_mask(name, given)
        check_no_dates(X=X)
        x, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=(np.float64, np.float32),
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if y.dtype.kind in "mM" and np.isnat(y).any():
            raise ValueError(f"y: got NaT in row {np.argwhere(np.isnat(y))[0][0]}, expected labels")
        types = {isinstance(label, str) for label in y.flat} if y.dtype == object else set()
        if len(types) > 1:
            raise ValueError("y: got text and other labels, expected labels of one type")
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._binarize(y)
        classes = unique_labels(y)
        if self.warm_start and set(classes) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous "
                f"call to fit. Previously got {self.classes_}, `y` has {classes}"
            )
        if not np.isin(classes, self.classes_).all():
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. "
                f"'y' has {classes}."
            )
        by_class = None
        if self.class_weight is not None:
            by_class = compute_sample_weight(self.class_weight, y).astype(x.dtype)
        return x, self._label_binarizer.transform(y).astype(bool), by_class

    def _targets(self, y: Any, dtype: Any) -> np.ndarray:
        """Labels (N, K), smoothed: (1 - s) y + s / C, where a sigmoid has C = 2 classes."""
        share, count = self.label_smoothing, y.shape[1] if self._is_multiclass() else 2
        targets: np.ndarray = ((1 - share) * y + share / count).astype(dtype)
        return targets

    def _is_multiclass(self) -> bool:
        return bool(self._label_binarizer.y_type_ == "multiclass")

    def _head(self) -> Head:
        return heads.softmax_cross_entropy if self._is_multiclass() else heads.sigmoid_logistic

    def _out_activation(self) -> str:
        return "softmax" if self._is_multiclass() else "logistic"

    def _loss_is_mean_of(self, model: MLP) -> int:
        return 1

    def _score(self, y: Any, predicted: np.ndarray, weight: Any) -> float:
        right, decided = (self._label_binarizer.inverse_transform(each) for each in (y, predicted))
        return float(accuracy_score(right, decided, sample_weight=weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
