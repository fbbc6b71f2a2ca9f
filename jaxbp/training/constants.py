"""Constants of a training: numbers that are arguments of its program, not part of it.

    l2               of the model
    learning rate    of each network, where many train at once
    numbers          all others of the optimiser: rates, decays, schedules' ends, arrays

So another number is no reason to compile.  An optimiser is traced, and the floating point numbers
in its jaxpr are taken out; two that differ in them alone are one.
"""

import inspect
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.extend.core import Literal

from jaxbp.model import MLP
from jaxbp.training.same_program import KEPT, as_value, first_alike, settings
from jaxbp.trees import CALLS, evaluated, opened, shaped, subjaxprs

MakeOptimizer = Callable[..., optax.GradientTransformation]  # of a learning rate or of nothing
Numbers = tuple[Any, ...]  # arrays, most of them scalars


class Constants(NamedTuple):
    """The numbers of a training that are arguments of its program."""

    l2: Any = None  # None: the model's
    learning_rate: Any = None  # None: one of the optimiser's numbers
    numbers: tuple[Numbers, Numbers] = ((), ())  # of the optimiser, for its init and its update


def without_l2(model: MLP, params: Any) -> tuple[MLP, Array | None]:
    """The model without l2, and l2 as an array of the dtype of params; None for 0."""
    if isinstance(model.l2, Array):
        return model._replace(l2=0.0), model.l2
    if not model.l2:
        return model, None
    dtype = jnp.result_type(jax.tree.leaves(params)[0])
    return model._replace(l2=0.0), jax.device_put(np.asarray(model.l2, dtype))


def with_l2(model: MLP, l2: Array | None) -> MLP:
    """The model with an l2, which may be under trace."""
    return model if l2 is None else model._replace(l2=l2)  # type: ignore[arg-type]


class Optimizer(NamedTuple):
    """An optimiser as a function of its numbers: what a program is compiled for."""

    make: MakeOptimizer
    lifted: bool  # whether its numbers are arguments; else they are part of the program

    def __call__(self, constants: Constants) -> optax.GradientTransformation:
        """The optax optimiser with these numbers, which may be under trace."""
        rate = () if constants.learning_rate is None else (constants.learning_rate,)
        if not self.lifted:
            return self.make(*rate)
        for_start, for_update = constants.numbers

        def init(params: Any) -> Any:
            return _Lifted(partial(_start, self.make), params, rate)(for_start, params, rate)

        def update(grads: Any, state: Any, params: Any, *, value: Any, **_: Any) -> Any:
            given = grads, state, params, value, rate
            return _Lifted(partial(_update, self.make), *given)(for_update, *given)

        return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True)
class Given:
    """A function of nothing that gives an optimiser."""

    optimizer: optax.GradientTransformation

    def __call__(self) -> optax.GradientTransformation:
        """The optimiser."""
        return self.optimizer


class Lifted(NamedTuple):
    """An optimiser, its numbers, and the shapes of its state."""

    optimizer: Optimizer
    numbers: tuple[Numbers, Numbers]
    state: Any


def without_numbers(make: MakeOptimizer, params: Any, *, rated: bool = False) -> Lifted:
    """The optimiser that ``make`` makes, without its numbers, and they.

    make: a function of a learning rate, if it is rated; else of nothing.
    params: arrays or shapes.
    rated: whether there is a learning rate, of the dtype of params.

    An optimiser that asks for more than the gradient and the loss, such as for the objective, keeps
    its numbers.
    """
    leaves, tree = jax.tree.flatten(params)
    shapes = tuple(shaped(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return _without_numbers(make, shapes, tree, rated, settings())


@lru_cache(maxsize=KEPT)
def _without_numbers(
    make: MakeOptimizer,
    leaves: tuple[Any, ...],
    tree: Any,
    rated: bool,
    settings: Any,
) -> Lifted:
    params, value = tree.unflatten(leaves), shaped((), leaves[0].dtype)
    rates = (value,) if rated else ()
    start, step = partial(_start, make), partial(_update, make)
    state = jax.eval_shape(start, params, rates)
    try:
        given = (params, rates), (params, state, params, value, rates)
        both = [_Lifted(of, *each) for of, each in zip((start, step), given, strict=True)]
        programs = [lifted.program(*each) for lifted, each in zip(both, given, strict=True)]
    except Exception:  # of the optimiser, which asks for what is withheld
        return Lifted(Optimizer(make, lifted=False), ((), ()), state)
    optimizer = first_alike(Optimizer(make, lifted=True), *programs)
    return Lifted(optimizer, jax.device_put((both[0].numbers, both[1].numbers)), state)


def _start(make: MakeOptimizer, params: Any, rate: tuple[Any, ...]) -> Any:
    return make(*rate).init(params)


def _update(
    make: MakeOptimizer, grads: Any, state: Any, params: Any, value: Any, rate: tuple[Any, ...]
) -> Any:
    update = with_those_taken(make(*rate))
    more = dict.fromkeys(("value_fn", "model", "batch", "grad_fn"), _Withheld())
    return update(grads, state, params, value=value, grad=grads, **more)


class _Withheld:
    """In place of an argument: whoever uses it cannot be traced without it."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("it is not given here")


class _Lifted:
    """A traced function whose arrays and floating point numbers come first among its arguments.

    Exponents stay where they are, as XLA has simpler operations for some; and what is in loops and
    branches.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._traced, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
        self._tree: Any = jax.tree.structure(result)
        self.numbers: Numbers = (*self._traced.consts, *_literals(self._traced))

    def __call__(self, numbers: Numbers, *arguments: Any) -> Any:
        """The result with these numbers."""
        count = len(self._traced.consts)
        others = iter(numbers[count:])

        def literal(operand: Any, equation: Any) -> Any:
            return next(others) if _is_number(operand, equation) else operand.val

        leaves = jax.tree.leaves(arguments)
        results = evaluated(self._traced, numbers[:count], leaves, literal)
        return self._tree.unflatten(results)

    def program(self, *arguments: Any) -> Hashable:
        """The operations of the function on these arguments, whatever its numbers."""
        return as_value(jax.make_jaxpr(self)(self.numbers, *arguments)), self._tree


def _literals(jaxpr: Any) -> Iterator[np.ndarray]:
    """The numbers in a jaxpr, as ``evaluated`` meets them."""
    inner = opened(jaxpr)
    for equation in inner.eqns:
        for operand in equation.invars:
            if _is_number(operand, equation):
                yield np.asarray(operand.val, operand.aval.dtype)
        if equation.primitive.name in CALLS:
            yield from _literals(next(subjaxprs(equation)))
    for operand in inner.outvars:
        if _is_number(operand, None):
            yield np.asarray(operand.val, operand.aval.dtype)


def _is_number(operand: Any, equation: Any) -> bool:
    if not isinstance(operand, Literal) or np.shape(operand.val):
        return False
    if equation is not None and equation.primitive.name == "pow" and operand is equation.invars[1]:
        return False
    return jnp.issubdtype(jnp.result_type(operand.val), jnp.floating)


def with_those_taken(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """The optimiser's update, given the keywords that it takes: ``optax.contrib.sam`` takes one."""
    update: Callable[..., Any] = optax.with_extra_args_support(optimizer).update
    parameters = inspect.signature(update).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return update
    taken = {parameter.name for parameter in parameters}

    def with_keywords(*arguments: Any, **extra: Any) -> Any:
        return update(*arguments, **{name: extra[name] for name in taken & extra.keys()})

    return with_keywords
