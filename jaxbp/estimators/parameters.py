"""The values that each parameter of the estimators may have, and the exception for any other."""

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.estimators.network import ACTIVATIONS, LOSSES
from jaxbp.heads import Head


class InvalidParameterError(ValueError, TypeError):
    """A parameter has a value that it cannot have; like scikit-learn's exception of this name."""


class _Expected(NamedTuple):
    words: str
    holds: Callable[[Any], bool]


def _one_of(*names: str) -> _Expected:
    words = " or ".join(map(repr, names))
    return _Expected(words, lambda value: isinstance(value, str) and value in names)


def _real(words: str, holds: Callable[[Any], bool]) -> _Expected:
    """A number, and no truth value."""
    return _Expected(
        words,
        lambda value: isinstance(value, Real) and not isinstance(value, bool) and holds(value),
    )


def _counts(least: int = 1) -> _Expected:
    return _real(
        f"a whole number of at least {least}",
        lambda value: isinstance(value, Integral) and int(value) >= least,
    )


def _or(first: _Expected, second: _Expected) -> _Expected:
    return _Expected(
        f"{first.words} or {second.words}", lambda v: first.holds(v) or second.holds(v)
    )


def hidden_sizes(given: Any) -> tuple[int, ...]:
    """The widths of the hidden layers: one of them may be given by itself."""
    return tuple(map(int, given)) if np.iterable(given) else (int(given),)


def _are_sizes(value: Any) -> bool:
    sizes = value if np.iterable(value) else [value]
    return not isinstance(value, str) and all(map(_counts().holds, sizes))


_BOOLEAN = _Expected("True or False", lambda value: isinstance(value, bool | np.bool_))
_POSITIVE = _real("a number above 0", lambda value: value > 0)
_NOT_NEGATIVE = _real("a number of at least 0", lambda value: value >= 0)
_SHARE = _real("a number of at least 0 and less than 1", lambda value: 0 <= value < 1)
_OF_PIECES = _Expected("a function a -> (h, slope)", callable)
_INFINITE = _real("numpy.inf", lambda value: value == math.inf)
_NOTHING = _Expected("None", lambda value: value is None)

#: by the parameter's name
EXPECTED: dict[str, _Expected] = {
    "activation": _or(_one_of(*ACTIVATIONS), _OF_PIECES),
    "solver": _one_of("lbfgs", "sgd", "adam"),
    "alpha": _NOT_NEGATIVE,
    "batch_size": _or(_one_of("auto"), _counts()),
    "learning_rate": _one_of("constant", "invscaling", "adaptive"),
    "learning_rate_init": _POSITIVE,
    "power_t": _NOT_NEGATIVE,
    "max_iter": _counts(),
    "shuffle": _BOOLEAN,
    "tol": _NOT_NEGATIVE,
    "verbose": _or(_or(_BOOLEAN, _counts(0)), _one_of("bar")),
    "warm_start": _BOOLEAN,
    "momentum": _real("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "nesterovs_momentum": _BOOLEAN,
    "early_stopping": _BOOLEAN,
    "validation_fraction": _SHARE,
    "beta_1": _SHARE,
    "beta_2": _SHARE,
    "epsilon": _POSITIVE,
    "n_iter_no_change": _or(_counts(), _INFINITE),
    "max_fun": _counts(),
    "loss": _or(_one_of(*LOSSES), _Expected("a jaxbp.Head", lambda v: isinstance(v, Head))),
    "class_weight": _Expected(
        "None, 'balanced' or a weight of at least 0 by class",
        lambda v: (
            v is None
            or (isinstance(v, str) and v == "balanced")
            or (isinstance(v, Mapping) and all(_NOT_NEGATIVE.holds(each) for each in v.values()))
        ),
    ),
    "dropout": _SHARE,
    "label_smoothing": _real("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "optimizer": _or(
        _Expected("an optax.GradientTransformation", lambda v: hasattr(v, "update")), _NOTHING
    ),
    "callbacks": _Expected(
        "a function of a jaxbp.Epoch, or a list of them, or None",
        lambda v: v is None or all(map(callable, v if isinstance(v, list | tuple) else [v])),
    ),
    "device": _Expected(
        "None or the name of a device, such as 'cpu' or 'gpu:1'",
        lambda v: v is None or isinstance(v, str),
    ),
    "compute_dtype": _Expected(
        "None, jax.numpy.bfloat16 or jax.numpy.float32",
        lambda v: v is None or v in (jnp.bfloat16, jnp.float32, "bfloat16", "float32"),
    ),
}


def device_named(name: str | None) -> jax.Device | None:
    """The device that a name such as "cpu" or "gpu:1" means; None for JAX's default.

    Raises InvalidParameterError where there is none.
    """
    if name is None:
        return None
    platform, _, number = name.partition(":")
    try:
        return jax.devices(platform)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError):
        there = ", ".join(f"{each.platform}:{each.id}" for each in jax.devices())
        raise InvalidParameterError(f"device: got {name!r}, expected one of {there}") from None


def check_parameters(given: dict[str, Any]) -> None:
    """Raise InvalidParameterError, naming the parameter, what came and what was expected.

    Those of no entry are checked by who uses them.
    """
    for name, value in given.items():
        expected = EXPECTED.get(name)
        if expected is not None and not expected.holds(value):
            raise InvalidParameterError(f"{name}: got {value!r}, expected {expected.words}")
    sizes = given["hidden_layer_sizes"]
    if not _are_sizes(sizes):
        raise InvalidParameterError(
            f"hidden_layer_sizes: got {sizes!r}, expected whole numbers, which must be > 0"
        )
    if given["solver"] != "lbfgs":
        return
    for name in ("dropout", "optimizer"):
        if given[name]:
            raise InvalidParameterError(
                f"{name}: got {given[name]!r}, expected none with solver='lbfgs'"
            )


def say(estimator: Any, line: str) -> None:
    """Print a line of the training where ``verbose`` asks for lines, as scikit-learn does."""
    if estimator.verbose and estimator.verbose != "bar":
        print(line)
