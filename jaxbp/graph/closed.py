"""Closed steps: operations whose derivative is JAX's own, or that of a rule that JAX is given.

Two kinds of equations stay one step, whatever is inside them: functions with a derivative rule of
their own (``jax.custom_jvp``, ``jax.custom_vjp``), for the rule is a part of the function, and
primitives outside the table of local derivatives.  The adjoints of their operands are those of
``jax.vjp`` of that one equation, computed once from the adjoints of all of its outputs: a rule need
not be linear in them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxbp.graph.symbols import call, symbol
from jaxbp.trees import opened, subjaxprs

#: primitives that apply a function with a derivative rule of its own
CUSTOM_RULES = (
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "call_hi_primitive",  # a custom_vjp under jax_custom_vjp3
)

#: in the name of a function, which JAX takes to end at a space
_SPACE = "\N{NO-BREAK SPACE}"

#: functions of JAX that are another one with a rule of its own, at some constant
_ALIASES = frozenset(("softplus",))


class Closed(NamedTuple):
    """An equation that is one step, as a primitive has it."""

    name: str  # the primitive's
    bind: Callable[..., Any]  # (*operands, **params) -> value, or the values of several outputs
    multiple_results: bool
    label: str  # what it is called on paper: relu
    has_own_rule: bool  # whether it is a function with a derivative rule of its own
    inside: Any  # the jaxpr of the function, None where there is none or more than one
    is_function: bool  # whether it applies a function, or several, as cond does

    def notation(self, *operands: Any, **params: Any) -> str:
        """label(a, b), or the label with the operands in its places {}; with its place in a list
        where it is one of several outputs."""
        texts = [str(symbol(operand)) for operand in operands]
        text = self.label.format(*texts) if "{" in self.label else call(self.label)(*operands)
        return text + (f"[{params['output']}]" if "output" in params else "")


def closed(equation: Any) -> Closed:
    """An equation as one step."""
    primitive = equation.primitive

    def bind(*operands: Any, **_: Any) -> Any:
        params = primitive.get_bind_params(equation.params)
        with equation.ctx.manager:
            return primitive.bind(*operands, **params)

    inside, own = _inside(equation), primitive.name in (*CUSTOM_RULES, "jit", "pjit")
    label = equation.params.get("name", primitive.name)
    if primitive.name in CUSTOM_RULES:
        debug_info = getattr(opened(inside), "debug_info", None)
        label = getattr(debug_info, "func_name", type(equation.params.get("_prim")).__name__)
    label = label.replace(_SPACE, " ").strip("_")
    applies = own or any(True for _ in subjaxprs(equation))
    return Closed(primitive.name, bind, primitive.multiple_results, label, own, inside, applies)


def is_custom(equation: Any) -> bool:
    """Whether an equation applies a function with a rule of its own, which it has the name of.

    That is softplus in jax.nn, too, which is logaddexp(a, 0).
    """
    name = equation.primitive.name
    if name in ("jit", "pjit") and equation.params["name"] in _ALIASES:
        inner = opened(_inside(equation)).eqns
        return len(inner) == 1 and is_custom(inner[0])
    return name in CUSTOM_RULES


def _inside(equation: Any) -> Any:
    """The jaxpr of the function that an equation applies."""
    if "_prim" in equation.params:
        traced = getattr(equation.params["_prim"], "traced", None)
        return getattr(traced, "jaxpr", None)
    jaxprs = list(subjaxprs(equation))
    return jaxprs[0] if len(jaxprs) == 1 else None


def operation(
    f: Callable[..., Any], *, notation: str = "", pull: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """f as one node of a graph, which can be opened: an activation, or the loss of a head.

    It is a ``jax.custom_vjp``, as any function with a rule of its own is one node.  Its adjoint is
    written out where the program of the pull is gy times a short formula, in which a value that
    ``named`` names has its name.

    f: a function (*operands) -> y of arrays.
    notation: how it is written: its name, or a text with {} for each operand in turn; f's name
        unless given.
    pull: a function (gy, y, *operands) -> what each operand receives, None for nothing; JAX's
        derivative of f unless given.

    >>> import jaxbp
    >>> import jax.numpy as jnp
    >>> def squared_error(z, t):
    ...     return 0.5 * jnp.sum((z - t) ** 2)
    >>> def pull(gy, y, z, t):
    ...     return gy * (z - t), None
    >>> head = operation(squared_error, notation="½‖{} - {}‖²", pull=pull)
    >>> graph = jaxbp.graph.trace(head, jnp.ones(2), jnp.zeros(2), names=("z", "t"))
    >>> graph["y"].operation, graph["z"].formula
    ('½‖z - t‖²', 'gy·(z - t)')
    """

    def called(*operands: Any) -> Any:
        return f(*operands)

    def forward(*operands: Any) -> tuple[Any, Any]:
        if pull is None:
            return jax.vjp(f, *operands)
        y = f(*operands)
        return y, (y, operands)

    def backward(kept: Any, gy: Any) -> Any:
        if pull is None:
            return kept(gy)
        y, operands = kept
        shares = pull(gy, y, *operands)
        return tuple(shares) if isinstance(shares, tuple | list) else (shares,)

    called.__name__ = (notation or f.__name__).replace(" ", _SPACE)
    node = jax.custom_vjp(called)
    node.defvjp(forward, backward)
    return node


def value_of(
    primitive: Any, params: dict[str, Any], operands: Sequence[Any], wanted: Sequence[int]
) -> Any:
    """The value of an equation, or its values.

    Where it is differentiated the value of a function with a rule is that which the rule gives.

    primitive, params: the equation's.
    operands: their values.
    wanted: the positions of the operands that vary.
    """
    if wanted and isinstance(primitive, Closed) and primitive.is_function:
        try:
            values, _ = jax.vjp(_varying(primitive.bind, operands, wanted), *of(operands, wanted))
        except (NotImplementedError, ValueError, TypeError):
            if primitive.has_own_rule:
                raise
        else:
            return values
    return primitive.bind(*operands, **params)


def may_be_nonlinear(equation: Any) -> bool:
    """Whether the adjoint's share need not be linear in the adjoint, so that it matters how often
    an equation is computed: a custom_vjp, and what may have one inside."""
    if equation.primitive.name in ("jit", "pjit"):
        return any(map(may_be_nonlinear, opened(_inside(equation)).eqns))
    applies = "_prim" in equation.params or any(True for _ in subjaxprs(equation))
    return applies and equation.primitive.name != "custom_jvp_call"


def vjp_by_jax(
    function: Callable[..., Any],
    outputs: Sequence[int],
    cotangents: Sequence[Any],
    operands: Sequence[Any],
    wanted: Sequence[int],
) -> tuple[list[Any], list[Any]]:
    """The outputs, and the adjoints that the wanted operands receive, by ``jax.vjp``.

    function: the equation, (*operands) -> a value, or the values of several outputs.
    outputs: which of its outputs have an adjoint.
    cotangents: their adjoints.
    operands: the operands' values.
    wanted: the positions of the operands that vary.
    """

    def chosen(*values: Any) -> list[Any]:
        result = _varying(function, operands, wanted)(*values)
        results = result if isinstance(result, list | tuple) else [result]
        return [results[output] for output in outputs]

    values, pull = jax.vjp(chosen, *of(operands, wanted))
    return values, list(pull(list(cotangents)))


def _varying(
    function: Callable[..., Any], operands: Sequence[Any], wanted: Sequence[int]
) -> Callable[..., Any]:
    """The function of those of its operands that vary."""

    def varying(*values: Any) -> Any:
        inputs = list(operands)
        for i, value in zip(wanted, values, strict=True):
            inputs[i] = value
        return function(*inputs)

    return varying


def of(operands: Sequence[Any], wanted: Sequence[int]) -> list[Any]:
    """The operands at the positions wanted."""
    return [operands[i] for i in wanted]
