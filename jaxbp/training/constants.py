"""Constants of a training: numbers that are arguments of its program, not part of it.

    l2               of the model
    learning rate    of each network, where many train at once
    numbers          all others of the optimiser: rates, decays, schedules' ends, arrays

So another number is no reason to compile.  An optimiser is traced, and the floating point numbers
in its jaxpr are taken out; two that differ in them alone are one.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.extend.core import Literal

from jaxbp.model import MLP
from jaxbp.same_program import as_value, settings
from jaxbp.trees import CALLS, evaluated, opened, subjaxprs

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


class Optimizer:
    """An optimiser as a function of its numbers: what a program is compiled for.

    Another one is equal if it traces to the same, but for its numbers.
    """

    def __init__(self, make: MakeOptimizer, lifted: "tuple[_Lifted, _Lifted] | None") -> None:
        self._make, self._both = make, lifted  # None: its numbers are part of the program
        self._key = make if lifted is None else (*(each.program for each in lifted), settings())
        self._hash = hash(self._key)

    @property
    def lifted(self) -> bool:
        """Whether its numbers are arguments of its program."""
        return self._both is not None

    @property
    def traced(self) -> tuple[Any, ...]:
        """The jaxprs of its init and its update; none where its numbers are part of its program."""
        return () if self._both is None else tuple(each.traced for each in self._both)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Optimizer) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __call__(self, constants: Constants) -> optax.GradientTransformation:
        """The optax optimiser with these numbers, which may be under trace."""
        rate = () if constants.learning_rate is None else (constants.learning_rate,)
        if self._both is None:
            return self._make(*rate)
        (start, step), (for_start, for_update) = self._both, constants.numbers

        def init(params: Any) -> Any:
            return start.at(params, rate)(for_start, params, rate)

        def update(grads: Any, state: Any, params: Any, *, value: Any, **_: Any) -> Any:
            given = grads, state, params, value, rate
            return step.at(*given)(for_update, *given)

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
    params = jax.eval_shape(lambda tree: tree, params)
    value = jax.tree.leaves(params)[0].update(shape=())
    rates = (value,) if rated else ()
    state = jax.eval_shape(partial(_start, make), params, rates)
    try:
        start = _Lifted(partial(_start, make), params, rates)
        step = _Lifted(partial(_update, make), params, state, params, value, rates)
    except Exception:  # of the optimiser, which asks for what is withheld
        return Lifted(Optimizer(make, None), ((), ()), state)
    numbers = jax.device_put((start.numbers, step.numbers))
    return Lifted(Optimizer(make, (start, step)), numbers, state)


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
        self._function, self._shapes = function, _shapes_of(arguments)
        self.traced, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
        self._tree: Any = jax.tree.structure(result)
        self.numbers: Numbers = (*self.traced.consts, *_literals(self.traced))
        #: the operations of the function, whatever its numbers
        self.program = as_value(jax.make_jaxpr(self)(self.numbers, *arguments)), self._tree
        hash(self.program)

    def __call__(self, numbers: Numbers, *arguments: Any) -> Any:
        """The result with these numbers."""
        count = len(self.traced.consts)
        others = iter(numbers[count:])

        def literal(operand: Any, equation: Any) -> Any:
            return next(others) if _is_number(operand, equation) else operand.val

        leaves = jax.tree.leaves(arguments)
        results = evaluated(self.traced, numbers[:count], leaves, literal)
        return self._tree.unflatten(results)

    def at(self, *arguments: Any) -> "_Lifted":
        """The function as it was traced, or traced for arguments of other shapes."""
        if _shapes_of(arguments) == self._shapes:
            return self
        return _Lifted(self._function, *arguments)


def _shapes_of(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves], structure


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
