"""Stacks: another library's network, layer by layer, and the model that it is here.

Whatever the library, a multilayer perceptron is a stack of affine layers with an activation after
each, and maybe an output unit after the last.  A reader of a library gives ``assembled`` that
stack; what has no counterpart here is refused by its name.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp import activations, heads
from jaxbp.activations import Activation
from jaxbp.heads import Head
from jaxbp.mlp import predict
from jaxbp.model import MLP, Layer, Params, checked_input, units_of
from jaxbp.reprs import short

#: output units, by the names of their functions; each head has one of them
OUTPUT_UNITS: dict[str, Callable[..., Any]] = {
    "linear": heads.linear_squared_error.predict,
    "sigmoid": heads.sigmoid_logistic.predict,
    "softmax": heads.softmax_cross_entropy.predict,
    "exponential": heads.exp_poisson.predict,
}


class Unit(NamedTuple):
    """A function between layers or after the last, and what it is here; None: no such thing."""

    text: str  # as its library calls it; "" where the source does not tell it
    activation: Activation | None = None  # where it stands after a hidden layer
    output: str | None = None  # where it stands after the last layer: one of OUTPUT_UNITS


def affine(weight: Any, bias: Any) -> Layer:
    """A layer of another library's W (O, I) and b (O,), which NumPy can read; those of 16 bits
    become float32, in which libraries compute with them where the rows are."""
    parts: Any = [np.asarray(part) for part in (weight, bias)]
    return Layer(*(part.astype(np.float32) if part.itemsize == 2 else part for part in parts))


def assembled(
    stack: Sequence[Layer | Unit], activation: Any, head: Head | None, library: str
) -> tuple[MLP, Params]:
    """The model and the parameters of a stack, read from a library of that name.

    activation and head are the user's; None: they are to be read off.  The parameters are copies,
    in JAX's default float: float64 is rounded to float32 unless ``jax_enable_x64``.  Raises
    ValueError for what cannot be read off or has no counterpart, and where the two disagree.
    """
    layers, after = _paired(stack, library)
    params = tuple(Layer(*map(jnp.array, layer)) for layer in layers)
    sizes = (params[0].weight.shape[1], *(len(layer.bias) for layer in params))
    hidden = _hidden(after[:-1], activation, library)
    model = MLP(sizes, hidden, _head(after[-1], head, library))
    jax.eval_shape(partial(predict, model), params, jnp.zeros(sizes[0]))  # which checks it all
    return model, params


def _paired(stack: Sequence[Layer | Unit], library: str) -> tuple[list[Layer], list[Unit | None]]:
    """The layers, and the unit after each; None where the next layer follows at once."""
    layers: list[Layer] = []
    after: list[Unit | None] = []
    for place, step in enumerate(stack):
        if isinstance(step, Layer):
            layers.append(step)
            after.append(None)
        elif layers and after[-1] is None:
            after[-1] = step
        else:
            before = after[-1] if after else None
            where = "before the first layer" if before is None else f"right after {before.text}"
            raise ValueError(
                f"{library}, step {place}: {step.text} stands {where}, expected layers with one "
                "activation between them"
            )
    if not layers:
        raise ValueError(f"{library}: no layer, expected at least one")
    return layers, after


def _hidden(after: Sequence[Unit | None], given: Any, library: str) -> Any:
    """The activation of all hidden layers, or one each: read off, or as it is given."""
    if given is not None:
        units = given if isinstance(given, tuple) else (given,) * len(after)
        if len(units) != len(after):
            raise ValueError(f"activation: got {len(units)}, expected one, or {len(after)}")
    else:
        units = (None,) * len(after)
    found: list[Any] = []
    for unit, own in zip(after, units, strict=True):
        read = activations.identity if unit is None else unit.activation
        if own is None and read is None:
            assert unit is not None
            if not unit.text:
                raise ValueError(
                    "activation: got none, and the source does not tell it; expected that of the "
                    "hidden layers, as in activation=jaxbp.activations.relu"
                )
            raise ValueError(
                f"activation: {unit.text} of {library} has no counterpart in jaxbp.activations; "
                "give activation= where it is one of them after all, or jaxbp.with_slope(function)"
            )
        if own is not None and read is not None and _known(own) != _known(read):
            raise ValueError(
                f"activation: got {short(own)}, but {library} has {short(read)} there; leave it out"
            )
        found.append(read if own is None else own)
    same = all(_known(unit) == _known(found[0]) for unit in found)
    return found[0] if found and same else tuple(found)


def _head(unit: Unit | None, given: Head | None, library: str) -> Head:
    """The head: as it is given, or the only one that has the output unit."""
    if given is not None and not isinstance(given, Head):
        raise TypeError(f"head: got {given!r}, expected one of jaxbp.heads, or a jaxbp.Head")
    if unit is not None and unit.output is None:
        raise ValueError(
            f"head: {unit.text} of {library} after the last layer is no output unit of jaxbp.heads"
        )
    output = "linear" if unit is None or unit.output is None else unit.output
    if output == "linear":
        if given is None:
            raise ValueError(
                f"head: got none, and the network of {library} ends in logits, which do not tell "
                "it; expected one, as in head=jaxbp.heads.softmax_cross_entropy"
            )
        return given
    fitting = {
        name: head for name, head in heads.BY_NAME.items() if head.predict == OUTPUT_UNITS[output]
    }
    if given is not None and given.predict != OUTPUT_UNITS[output]:
        raise ValueError(
            f"head: got {given}, but {library} has the output unit {output}, which "
            f"{' and '.join(fitting)} {'has' if len(fitting) == 1 else 'have'}"
        )
    if given is None and len(fitting) > 1:
        raise ValueError(
            f"head: got none, and the output unit {output} of {library} is that of "
            f"{' and of '.join(fitting)}; expected one of them"
        )
    return next(iter(fitting.values())) if given is None else given


def layers_and_units(
    model: MLP, params: Params, table: dict[str, Callable[..., Any]], library: str
) -> list[tuple[Layer, Any]]:
    """Each layer with a library's counterpart of its activation; None after the last.

    table: by the activation's name, what makes the counterpart of the activation's keywords.

    Raises ValueError for an activation that is not in it, and where params do not fit the model.
    """
    checked_input(model, params, np.zeros(model.sizes[0], np.float32))
    made: list[Any] = []
    for unit in units_of(model)[:-1]:
        name, keywords = described(unit, library)
        if name not in table:
            raise ValueError(f"activation: {short(unit)} has no counterpart in {library}")
        made.append(table[name](**keywords))
    return list(zip(params, [*made, None], strict=True))


def described(unit: Activation, library: str) -> tuple[str, dict[str, float]]:
    """The name of an activation and all of its keywords; ValueError for one of the user's own."""
    known = _known(unit)
    if not isinstance(known, tuple):
        raise ValueError(f"activation: {short(unit)} has no counterpart in {library}")
    name, keywords = known
    return name, dict(keywords)


def activation_of(name: str, **keywords: float) -> Activation:
    """The activation of a name and keywords, without those that are its defaults."""
    function = activations.BY_NAME[name]
    given = {key: float(value) for key, value in keywords.items()}
    other = {key: value for key, value in given.items() if value != _defaults(function)[key]}
    return partial(function, **other) if other else function


def _known(unit: Activation) -> Any:
    """An activation of the package as (name, keywords), all of them; any other as it is."""
    function, given = unit, {}
    if isinstance(unit, partial) and not unit.args:
        function, given = unit.func, unit.keywords
    if activations.BY_NAME.get(getattr(function, "__name__", "")) is not function:
        return unit
    keywords = {**_defaults(function), **{key: float(value) for key, value in given.items()}}
    return function.__name__, tuple(sorted(keywords.items()))


def _defaults(function: Callable[..., Any]) -> dict[str, float]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def library(module: str, package: str = "") -> Any:
    """Import a library.  Raises ImportError, which says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        raise ImportError(f"{error}; it is needed here: pip install {name}") from error


def named(function: Any) -> str:
    """A function or an object of another library in a few words, for a message."""
    return short(function) if callable(function) else repr(function)
