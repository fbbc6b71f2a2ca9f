"""scikit-learn: a fitted ``MLPClassifier`` or ``MLPRegressor``, its own or this package's."""

from typing import Any

from jaxbp import activations, heads
from jaxbp.heads import Head
from jaxbp.interop.stack import Unit, affine, assembled
from jaxbp.model import MLP, Layer, Params

#: heads by the estimator's out_activation_ and loss
_HEADS: dict[tuple[str, str], Head] = {
    ("softmax", "log_loss"): heads.softmax_cross_entropy,
    ("logistic", "log_loss"): heads.sigmoid_logistic,
    ("identity", "squared_error"): heads.linear_half_squared_error,
    ("identity", "huber"): heads.linear_huber,
    ("identity", "absolute_error"): heads.linear_absolute_error,
    ("exp", "poisson"): heads.exp_poisson,
}


def from_sklearn(estimator: Any) -> tuple[MLP, Params]:
    """Read a fitted ``MLPClassifier`` or ``MLPRegressor`` -> (model, params).

    A classifier of two classes, or of several labels, has sigmoid units: two classes have one unit,
    the probability of ``classes_[1]``.  Other classes are softmax units in the order of
    ``classes_``.  The penalty does not travel: scikit-learn divides alpha by the rows of a
    minibatch, which the model does not know.  float64 is rounded to float32 unless
    ``jax_enable_x64``.  Raises TypeError for what is no such estimator, or is not fitted,
    ValueError for a loss that has no counterpart.
    """
    kind = type(estimator).__name__
    if not hasattr(estimator, "out_activation_") or not hasattr(estimator, "coefs_"):
        best = f"a {kind}, of which best_estimator_ is one"
        missing = "not fitted" if hasattr(estimator, "hidden_layer_sizes") else f"a {kind}"
        missing = best if hasattr(estimator, "best_estimator_") else missing
        raise TypeError(
            f"estimator: got one that is {missing}, expected a fitted MLPClassifier or MLPRegressor"
        )
    unit = estimator.activation
    if isinstance(unit, str):
        unit = activations.BY_NAME["sigmoid" if unit == "logistic" else unit]
    loss = getattr(estimator, "loss", "log_loss")
    head = loss if isinstance(loss, Head) else _HEADS.get((estimator.out_activation_, loss))
    if head is None:
        raise ValueError(
            f"head: loss={loss!r} with {estimator.out_activation_} output units has no counterpart"
        )
    stack: list[Layer | Unit] = []
    for weight, bias in zip(estimator.coefs_, estimator.intercepts_, strict=True):
        stack += [affine(weight.T, bias), Unit(str(estimator.activation), unit)]
    return assembled(stack[:-1], None, head, "scikit-learn")
