"""``jaxbp explain``: an expression, or a small network, forward and backward as on paper."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from jaxbp.checkpoint import load
from jaxbp.cli.expressions import ExpressionError, numbers, parse
from jaxbp.cli.files import new_file
from jaxbp.cli.options import ActivationName, HeadName, UsageError
from jaxbp.graph import DomainError, Graph, trace, trace_network
from jaxbp.initialisation import init
from jaxbp.model import MLP, Layer, Params, units_of
from jaxbp.reprs import short

_MOST_WEIGHTS = 1_000_000


@dataclass(frozen=True)
class Explain:
    """Show every value of an expression, and every derivative, as they are worked out on paper.

    jaxbp explain "exp(x*z) + x*z/log(x)" x=2 z=3

    jaxbp explain "a = x*z; b = log(x); exp(a) + a/b" x=2 z=3 --html page.html

    jaxbp explain --network 2-3-1 --activation tanh

    jaxbp explain --network 2-1 x=3,1 y=1 "W1=[[0.1, 0.2]]" b1=0
    """

    expression: Annotated[
        Positional[str],
        arg(
            metavar="EXPRESSION",
            help="numbers, names, + - * / % ** @, x[0], W[:, 1], W.T and functions such as exp, "
            "log, tanh, sum, norm, softmax, where(x > 0, x, 0); a = x*z; exp(a) names a value",
            help_behavior_hint="(required, except for a network)",
        ),
    ] = ""
    values: Annotated[
        Positional[tuple[str, ...]],
        arg(
            metavar="NAME=VALUE ...",
            help="a number, pi/2, a vector 1,2,3 or a matrix '1,2;3,4' or '[[1,2],[3,4]]'; for a "
            "network, x, y, and W1, b1, W2, ... in place of drawn ones",
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
        Literal["text", "mermaid", "dot", "latex"],
        arg(
            name="format",
            help="what to print: the page, the graph for Mermaid or Graphviz, or "
            "aligned equations for a LaTeX document with amsmath",
        ),
    ] = "text"
    latex: Annotated[bool, arg(help="the same as --format latex")] = False
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
    weights: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="a run folder or model.safetensors: explain this network, with its weights, "
            "activation and head; x is what its first layer gets, after the preparation",
            help_behavior_hint="(default: drawn by the seed)",
        ),
    ] = None
    seed: Annotated[int, arg(metavar="N", help="seed of the network's weights and example")] = 0


def run(options: Explain, console: Console) -> int:
    """Carry out the command; the exit status."""
    if options.latex and options.form not in {"text", "latex"}:
        raise UsageError(f"--latex: got --format {options.form} as well, expected one of them")
    new_file("--html", options.html, (".html", ".htm"))
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed: got {options.seed}, expected at least 0 and less than 2^63")
    try:
        with jax.enable_x64(True):
            is_network = options.network is not None or options.weights is not None
            title, graph = (network_graph if is_network else expression_graph)(options)
            forms: dict[str, Callable[[], str]] = {
                "text": lambda: graph.text(console.width),
                "mermaid": graph.to_mermaid,
                "dot": graph.to_dot,
                "latex": graph.to_latex,
            }
            form = "latex" if options.latex else options.form
            console.print(forms[form](), soft_wrap=True, markup=False, highlight=False)
            if options.html is not None:
                graph.to_html(options.html, title=title)
    except (ExpressionError, DomainError) as error:
        raise UsageError(str(error)) from None
    if options.html is not None and form == "text":
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
            raise UsageError(f"{name}: got two values, expected one")
        try:
            values[name] = numbers(text)
        except ExpressionError as error:
            raise UsageError(f"{name}: {error}") from None
    return values


# A network


def network_graph(options: Explain) -> tuple[str, Graph]:
    """Trace the loss of one example through a network."""
    given = assigned([text for text in (options.expression, *options.values) if text])
    network, params = network_of(options, given)
    sizes, head = network.sizes, network.head
    drawn = np.random.default_rng(options.seed).normal(size=sizes[0]).round(1)
    usual = np.eye(sizes[-1])[0] if head.target == "classes" else np.ones(sizes[-1])
    x = _shaped("x", given.pop("x", drawn), (sizes[0],))
    target = _target(given.pop("y", usual), network)
    if given:
        last = len(sizes) - 1
        here = "W1 and b1" if last == 1 else f"W1 to W{last} and b1 to b{last}"
        known = f"a network has x and y, and this one {here}"
        raise UsageError(f"{min(given)}: got a value for it, but {known}")
    kinds = dict.fromkeys(map(short, units_of(network)[:-1]))
    title = f"{'-'.join(map(str, sizes))} {', '.join((*kinds, str(head)))}"
    return title, trace_network(network, params, x, target)


def _target(values: Any, network: MLP) -> np.ndarray:
    """The targets y as a row, with a 1 at the class where the head takes classes and y is one."""
    outputs = network.sizes[-1]
    if network.head.target != "classes" or np.ndim(values):
        return _shaped("y", values, (outputs,))
    if values not in range(outputs):
        expected = f"a class from 0 to {outputs - 1}, or {outputs} numbers, as in 1,0,0"
        raise UsageError(f"y: got {values:g}, expected {expected}")
    row: np.ndarray = np.equal(np.arange(outputs), values).astype(float)
    return row


def network_of(options: Explain, given: dict[str, Any]) -> tuple[MLP, Params]:
    """The network to explain, with weights from a file, from the command line or drawn.

    Takes W1, b1, ... out of the values given.
    """
    if options.weights is not None:
        trained = load(options.weights)
        network, params = trained.model, trained.params
        _check_size(network.sizes)
        if options.network not in {None, "-".join(map(str, network.sizes))}:
            got = f"got {options.network}, but {options.weights} is"
            raise UsageError(f"--network: {got} {'-'.join(map(str, network.sizes))}")
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
    else:
        description = options.network or ""
        if not re.fullmatch(r"[1-9]\d{0,4}(-[1-9]\d{0,4})+", description):
            raise UsageError(f"--network: got {description!r}, expected sizes such as 2-3-1")
        sizes = tuple(map(int, description.split("-")))
        network = MLP(sizes, activations.BY_NAME[options.activation], heads.BY_NAME[options.head])
        _check_size(sizes)
        params = init(jax.random.key(options.seed), network, dtype=jnp.float64)
        params = jax.tree.map(lambda leaf: leaf.round(2), params)

    def replaced(letters: str, layer: int, drawn: Array) -> Array:
        for name in (f"{letter}{layer}" for letter in letters):
            if name in given:
                return jnp.asarray(_shaped(name, given.pop(name), drawn.shape))
        return drawn

    return network, tuple(
        Layer(replaced("Ww", layer, weight), replaced("b", layer, bias))
        for layer, (weight, bias) in enumerate(params, 1)
    )


def _check_size(sizes: Sequence[int]) -> None:
    weights = sum(i * o for i, o in pairwise(sizes))
    if weights > _MOST_WEIGHTS:
        raise UsageError(f"--network: got {weights:,} weights, expected at most {_MOST_WEIGHTS:,}")


def _shaped(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The values as an array of that shape; one row of a matrix may be a vector.

    Raises UsageError where they have another shape.
    """
    got = np.asarray(values, float)
    array = np.atleast_2d(got) if len(shape) == 2 else np.atleast_1d(got)
    if array.shape != shape:
        rows = f"{shape[0]} rows of {shape[1]}" if len(shape) == 2 else str(shape[0])
        such = "as in [[1,2],[3,4]]" if len(shape) == 2 else "as in 1,2,3"
        raise UsageError(f"{name}: got shape {got.shape}, expected {rows} numbers, {such}")
    return array
