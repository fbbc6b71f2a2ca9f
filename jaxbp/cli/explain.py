"""``jaxbp explain``: an expression, or a small network, forward and backward as on paper."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console
from tyro.conf import Positional, arg

from jaxbp import activations, heads
from jaxbp.activations import Activation
from jaxbp.cli.expressions import ExpressionError, numbers, parse
from jaxbp.cli.files import new_file
from jaxbp.cli.options import ActivationName, HeadName, UsageError
from jaxbp.graph import DomainError, Graph, named, trace
from jaxbp.graph.symbols import SUPERSCRIPTS
from jaxbp.initialisation import init
from jaxbp.mlp import forward
from jaxbp.model import MLP, Layer

_MOST_WEIGHTS = 1_000_000


@dataclass(frozen=True)
class Explain:
    """Show every value of an expression, and every derivative, as they are worked out on paper.

    jaxbp explain "exp(x*z) + x*z/log(x)" x=2 z=3

    jaxbp explain "a = x*z; b = log(x); exp(a) + a/b" x=2 z=3 --html page.html

    jaxbp explain --network 2-3-1 --activation tanh
    """

    expression: Annotated[
        Positional[str],
        arg(
            metavar="EXPRESSION",
            help="numbers, names, + - * / ** @ and functions such as exp, log, sin, tanh, sum; "
            "a = x*z; exp(a) names a value",
            help_behavior_hint="(required, except with --network)",
        ),
    ] = ""
    values: Annotated[
        Positional[tuple[str, ...]],
        arg(
            metavar="NAME=VALUE ...",
            help="a number, pi/2, a vector 1,2,3 or a matrix '1,2;3,4'; for a network, x and y",
            help_behavior_hint="(one for each name)",
        ),
    ] = ()
    html: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="write a page to step through in a browser, a new .html",
            help_behavior_hint="(default: none)",
        ),
    ] = None
    form: Annotated[
        Literal["text", "mermaid", "dot"],
        arg(name="format", help="what to print: the page, or the graph for Mermaid or Graphviz"),
    ] = "text"
    network: Annotated[
        str | None,
        arg(
            metavar="D-...-K",
            help="one example through a network of these sizes, such as 2-3-1",
            help_behavior_hint="(default: none)",
        ),
    ] = None
    activation: Annotated[ActivationName, arg(help="activation of the network's hidden units")] = (
        "tanh"
    )
    head: Annotated[HeadName, arg(help="the network's output unit and loss")] = (
        "linear_half_squared_error"
    )
    seed: Annotated[int, arg(metavar="N", help="seed of the network's weights and example")] = 0


def run(options: Explain, console: Console) -> int:
    """Carry out the command; the exit status."""
    new_file("--html", options.html, (".html", ".htm"))
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed: got {options.seed}, expected at least 0 and less than 2^63")
    try:
        with jax.enable_x64(True):
            if options.network is None:
                title, graph = expression_graph(options)
            else:
                title, graph = network_graph(options.network, options)
            forms: dict[str, Callable[[], str]] = {
                "text": lambda: graph.text(console.width),
                "mermaid": graph.to_mermaid,
                "dot": graph.to_dot,
            }
            console.print(forms[options.form](), soft_wrap=True)
            if options.html is not None:
                graph.to_html(options.html, title=title)
    except (ExpressionError, DomainError) as error:
        raise UsageError(str(error)) from None
    if options.html is not None and options.form == "text":
        console.print(f"\nwritten to {options.html}: open it in a browser", soft_wrap=True)
    return 0


def shielded(arguments: Sequence[str]) -> list[str]:
    """Write the minus that begins an expression as −, which the parser does not take for an option.

    The parser of expressions reads it as a minus.
    """
    expression = re.compile(r"-(?!h$|-).*[^\d.-]")
    return [f"−{text[1:]}" if expression.match(text) else text for text in arguments]


def expression_graph(options: Explain) -> tuple[str, Graph]:
    """Trace the expression at its values -> (title, graph)."""
    if not options.expression:
        raise UsageError('EXPRESSION: got none, expected one such as "exp(x*z)" x=2 z=3')
    expression = parse(options.expression)
    values = assigned(options.values)
    expression.check_values(values)
    if not expression.names:
        raise UsageError("the expression has no names: there is nothing to differentiate by")
    function = expression.function()
    graph = trace(function, *(values[name] for name in expression.names))
    shape = graph[graph.output].value.shape
    if shape:
        raise UsageError(
            f"the expression has shape {shape}, expected one number: sum(...) makes one"
        )
    return expression.text, graph


def assigned(assignments: Sequence[str]) -> dict[str, Any]:
    """The numbers by name, of texts such as "x=2"."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        name = unicodedata.normalize("NFKC", name)  # as Python does with names
        if not equals or not name.isidentifier():
            raise UsageError(f"{assignment}: expected NAME=VALUE, such as x=2")
        if name in values:
            raise UsageError(f"{name}: got two values")
        try:
            values[name] = numbers(text)
        except ExpressionError as error:
            raise UsageError(f"{name}: {error}") from None
    return values


# A network


def network_graph(description: str, options: Explain) -> tuple[str, Graph]:
    """Trace one example through a network: the package's own forward pass and loss, with names."""
    if not re.fullmatch(r"[1-9]\d{0,4}(-[1-9]\d{0,4})+", description):
        raise UsageError(f"--network: got {description!r}, expected sizes such as 2-3-1")
    sizes = tuple(map(int, description.split("-")))
    unit, head = activations.BY_NAME[options.activation], heads.BY_NAME[options.head]
    units = tuple(partial(_named_unit, unit, layer) for layer in range(1, len(sizes) - 1))
    model = MLP(sizes, units, head)
    given = assigned([text for text in (options.expression, *options.values) if text])
    drawn = np.random.default_rng(options.seed).normal(size=sizes[0]).round(1)
    usual = np.eye(sizes[-1])[0] if head.target == "classes" else np.ones(sizes[-1])
    x = _row("x", given.pop("x", drawn), sizes[0])
    target = _row("y", given.pop("y", usual), sizes[-1])
    if given:
        raise UsageError(f"{min(given)}: got a value for it, but a network has x and y")
    weights = sum(i * o for i, o in pairwise(sizes))
    if weights > _MOST_WEIGHTS:
        raise UsageError(f"--network: got {weights:,} weights, expected at most {_MOST_WEIGHTS:,}")
    params = init(jax.random.key(options.seed), MLP(sizes, unit, head), dtype=jnp.float64)
    leaves = [leaf.round(2) for layer in params for leaf in layer]
    names = [_symbol(letter, layer) for layer in range(1, len(sizes)) for letter in "wb"]

    def loss(x: Array, *leaves: Array) -> Array:
        params = tuple(map(Layer, leaves[::2], leaves[1::2]))
        logits, _ = forward(model, params, x)
        logits = _named_pre_activation(logits, len(sizes) - 1)
        losses, _ = head.loss(logits, named(jnp.asarray(target), "y"))
        return named(losses, "L")

    title = f"{description} {options.activation}, {options.head}"
    return title, trace(loss, x, *leaves, names=["x", *names])


def _named_unit(unit: Activation, layer: int, a: Array) -> tuple[Array, Array]:
    h, slope = unit(_named_pre_activation(a, layer))
    return named(h, _symbol("z", layer)), slope


def _named_pre_activation(a: Array, layer: int) -> Array:
    return named(a, _symbol("a", layer), adjoint=_symbol("δ", layer))


def _symbol(letter: str, layer: int) -> str:
    """A letter with its layer, as in "w⁽²⁾"."""
    return f"{letter}⁽{str(layer).translate(SUPERSCRIPTS)}⁾"


def _row(name: str, values: Any, size: int) -> np.ndarray:
    """The values as a vector of a size.  Raises UsageError where they are none."""
    row = np.atleast_1d(np.asarray(values, float))
    if row.shape != (size,):
        raise UsageError(f"{name}: got shape {row.shape}, expected {size} numbers, as in 1,2,3")
    return row
