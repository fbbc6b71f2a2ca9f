"""``jaxbp check``: gradients of jaxbp's own in every combination, or of a user's function."""

import json
import sys
import textwrap
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
import tyro
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.text import Text
from tyro.conf import arg

from jaxbp import activations, heads
from jaxbp.checking import GradientReport, compare, gradcheck
from jaxbp.checking.verdicts import worst_verdict
from jaxbp.cli.files import PICTURES, new_file, written
from jaxbp.cli.options import UsageError
from jaxbp.cli.pictures import step_curves, write
from jaxbp.cli.users_function import find, raising
from jaxbp.gradient import Batch, autodiff, backprop, objective
from jaxbp.heads import Head
from jaxbp.model import MLP, Layer, Params
from jaxbp.text import align, number, plain

DEPTHS = (0, 1, 2)  # hidden layers
_STATUS = {"pass": 0, "fail": 1, "inconclusive": 2}
_STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
_LABEL, _CELL = 11, 11  # columns of text that an activation's name takes, and an error under a head
_SAME = 1e-12  # two ways to the same float64 gradient may differ by this relative error


@dataclass(frozen=True)
class Check:
    """Check gradients: jaxbp's own, of every activation, head and depth, or yours.

    jaxbp check homework.py:loss

    loss_args are the arguments: a tuple, or a function that returns one.

    loss_grad is the gradient to check, values or a function; else autodiff's is.

    loss_options, a dict, goes to jaxbp.gradcheck; --order and --seed override it.

    Exit status: 0 if all passed, 1 if a gradient is wrong, 2 without a verdict.
    """

    function: Annotated[
        tyro.conf.Positional[str],
        arg(
            metavar="[MODULE:FUNCTION]",
            help="as in path/to/file.py:loss, my_package.kernels:attention, file.py:Class.method",
            help_behavior_hint="(default: jaxbp's own backward pass)",
        ),
    ] = ""
    args: Annotated[
        str | None,
        arg(
            metavar="NAME",
            help="the arguments, by their name in the module",
            help_behavior_hint="(default: FUNCTION_args)",
        ),
    ] = None
    grads: Annotated[
        str | None,
        arg(
            metavar="NAME",
            help="the gradient to check, by its name in the module",
            help_behavior_hint="(default: FUNCTION_grad or FUNCTION_grads)",
        ),
    ] = None
    argnums: Annotated[
        tuple[int, ...],
        arg(
            metavar="N ...",
            help="the arguments to differentiate by, counted from 0",
            help_behavior_hint="(default: 0)",
        ),
    ] = ()
    returns: Annotated[
        Literal["value", "value,grads"] | None,
        arg(
            metavar="value|value,grads",
            help="what the function returns: its value alone, or then its gradient, to be checked",
            help_behavior_hint="(default: value)",
        ),
    ] = None
    order: Annotated[
        Literal[1, 2] | None,
        arg(
            help="2: the gradient's own gradient too",
            metavar="1|2",
            help_behavior_hint="(default: 1)",
        ),
    ] = None
    seed: Annotated[
        int | None,
        arg(
            help="seed of the directions, and of jaxbp's own networks",
            metavar="INT",
            help_behavior_hint="(default: 0)",
        ),
    ] = None
    json: Annotated[bool, arg(help="print the report as JSON, and nothing else")] = False
    plot: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="draw error against step for each leaf, to a new .png, .svg, .pdf",
            help_behavior_hint="(default: none)",
        ),
    ] = None
    output: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="write the report as JSON, to a new file",
            help_behavior_hint="(default: none)",
        ),
    ] = None


def run(options: Check, console: Console) -> int:
    """Carry out the command; the exit status."""
    new_file("--plot", options.plot, PICTURES)
    new_file("--output", options.output)
    named = options.args or options.grads or options.argnums or options.returns
    if named and not options.function:
        raise UsageError("MODULE:FUNCTION: got none, expected the function to check")
    with redirect_stdout(sys.stderr if options.json else sys.stdout):  # what the user's code prints
        report, record = (check_function if options.function else check_own)(options, console)
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    if options.json:
        print(text, end="")
    if options.output is not None:
        with written(options.output) as file:
            file.write(text)
        console.print(f"written to {options.output}", soft_wrap=True)
    if options.plot is not None:
        write(step_curves(report), options.plot)
        console.print(f"drawn in {options.plot}", soft_wrap=True)
    return _STATUS[record["verdict"]]


# A user's function


def check_function(options: Check, console: Console) -> tuple[GradientReport, dict[str, Any]]:
    """Check the user's function and print the report; the report, and all of it for JSON."""
    found = find(
        options.function,
        args=options.args,
        grads=options.grads,
        argnums=options.argnums,
        returns=options.returns,
    )
    given: dict[str, Any] = {} if options.order is None else {"order": options.order}
    given |= {} if options.seed is None else {"key": jax.random.key(options.seed)}
    settings = {"key": jax.random.key(0), **found.options, **given}
    with raising(options.function):
        report = gradcheck(found.f, *found.args, grads=found.grads, **settings)
    if not options.json:
        console.print(_filled(found.source, console), soft_wrap=True)
        print_report(report, console)
    return report, {"function": options.function, "source": found.source, **report.to_dict()}


def print_report(report: GradientReport, console: Console) -> None:
    """The report as it prints itself, in colours."""
    head = Text(_filled(report.headline(), console), _STYLES[report.verdict])
    console.print(head, soft_wrap=True)
    table = Text(align(report.table(), console.width))
    for verdict, style in _STYLES.items():
        table.highlight_regex(rf"(?m){verdict}$", style)
    console.print(table, soft_wrap=True)
    for finding in report.findings():
        console.print(_filled(finding, console), soft_wrap=True)
    if report.second_order is not None:
        console.print("\nsecond order, the gradient's own gradient:")
        print_report(report.second_order, console)


def _filled(line: str, console: Console) -> str:
    """A line in the console's width, with an indent where it goes on: names and numbers whole."""
    return textwrap.fill(
        line,
        console.width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


# jaxbp's own backward pass


def check_own(options: Check, console: Console) -> tuple[GradientReport, dict[str, Any]]:
    """Check jaxbp's own gradients and print their errors; the report with the largest, and all of
    them for JSON."""
    total = sum(len(_activations(depth)) * len(heads.BY_NAME) for depth in DEPTHS)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking", total=total)
        with raising("jaxbp's own backward pass"):
            results = check_all(options, on_each=lambda: progress.advance(task))
    if not options.json:
        console.print(*own_tables(results, console.width), own_summary(results), sep="\n")
    verdict = worst_verdict([result.verdict for result in results])
    record = {"verdict": verdict, "combinations": [result.to_dict() for result in results]}
    return max(results, key=lambda result: result.error).report, record


@dataclass(frozen=True)
class Combination:
    """One activation, head and depth, checked three ways."""

    activation: str
    head: str
    depth: int
    report: GradientReport  # finite differences, and the order of Taylor's remainders
    autodiff: float  # relative error against jax.grad, in float64

    @property
    def error(self) -> float:
        """The largest relative error of any leaf, by any way."""
        return max(self.autodiff, *(leaf.relative_error for leaf in self.report.leaves))

    @property
    def verdict(self) -> Any:
        """The verdict of all three."""
        return self.report.verdict if self.autodiff <= _SAME else "fail"

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {
            "activation": self.activation,
            "head": self.head,
            "depth": self.depth,
            "report": self.report.to_dict(),
            "autodiff": plain(self.autodiff),
            "verdict": self.verdict,
        }


def _activations(depth: int) -> list[str]:
    """The names to go through: without a hidden layer there is nothing to choose."""
    return list(activations.BY_NAME) if depth else ["identity"]


def check_all(options: Check, on_each: Callable[[], object]) -> list[Combination]:
    """Check every activation × head × depth; on_each is called after each combination."""
    return [result for depth in DEPTHS for result in check_depth(options, depth, on_each)]


def check_depth(options: Check, depth: int, on_each: Callable[[], object]) -> list[Combination]:
    """Check every activation × head at one depth.

    Which activation and which head are numbers in the compiled program, so that there is one.
    """
    units, losses = list(activations.BY_NAME), list(heads.BY_NAME)
    seed = options.seed or 0
    key = jax.random.key(seed)
    f, grads, by_jax = _programs(depth)
    results = []
    for index, (unit, head) in enumerate(product(_activations(depth), losses)):
        which = np.array([units.index(unit), losses.index(head)], np.int32)
        with jax.enable_x64(True):
            args = (*_point(depth, [seed, depth, index]), which)
            report = gradcheck(f, *args, grads=grads, key=key, order=options.order or 1)
            both = compare(grads(*args), by_jax(*args))
        results.append(Combination(unit, head, depth, report, both.relative_error))
        on_each()
    return results


def _programs(depth: int) -> tuple[Callable[..., Any], ...]:
    """The objective, its gradient by hand and by jax.grad: functions of (params, batch, which)."""
    units = tuple(activations.BY_NAME.values())
    losses = tuple(head.loss for head in heads.BY_NAME.values())

    def model(which: jax.Array) -> MLP:
        unit = partial(jax.lax.switch, which[0], units)
        loss = partial(jax.lax.switch, which[1], losses)
        return MLP(_sizes(depth), unit, Head(predict=lambda a: a, loss=loss), l2=0.1)

    def f(params: Params, batch: Batch, which: jax.Array) -> jax.Array:
        return objective(model(which), params, batch)

    def grads(params: Params, batch: Batch, which: jax.Array) -> Params:
        return backprop(model(which), params, batch)[1]

    def by_jax(params: Params, batch: Batch, which: jax.Array) -> Params:
        return autodiff(model(which), params, batch)[1]

    return jax.jit(f), jax.jit(grads), jax.jit(by_jax)


def _sizes(depth: int) -> tuple[int, ...]:
    return (3, *(4,) * depth, 2)


def _point(depth: int, seed: list[int]) -> tuple[Params, Batch]:
    """Random parameters, inputs, soft labels and example weights."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape))

    params = tuple(Layer(drawn(o, i), drawn(o)) for i, o in pairwise(_sizes(depth)))
    target = jnp.asarray(rng.uniform(size=(5, 2)))
    return params, Batch(drawn(5, 3), target, jnp.asarray(rng.uniform(0.5, 2, size=5)))


def own_tables(results: list[Combination], width: int) -> list[rich.table.Table]:
    """Tabulate activations by heads, as many heads in one table as that many columns of text hold:
    in each cell the largest relative error over all depths."""
    title = f"backprop: largest relative error over {', '.join(map(str, DEPTHS))} hidden layers"
    names = list(heads.BY_NAME)
    count = -(-len(names) // max(1, (width - _LABEL) // _CELL))  # of tables
    size = -(-len(names) // count)
    tables = [_table(results, names[at : at + size]) for at in range(0, len(names), size)]
    tables[0].title = title
    return tables


def _table(results: list[Combination], names: list[str]) -> rich.table.Table:
    """Tabulate activations by these heads."""
    table = rich.table.Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("", no_wrap=True)
    for head in names:
        table.add_column(head.replace("_", "\n"), justify="right", no_wrap=True)
    for unit in dict.fromkeys(result.activation for result in results):
        cells = []
        for head in names:
            own = [r for r in results if (r.activation, r.head) == (unit, head)]
            verdict = worst_verdict([result.verdict for result in own])
            cells.append(Text(number(max(r.error for r in own)), _STYLES[verdict]))
        table.add_row(unit, *cells)
    return table


def own_summary(results: list[Combination]) -> rich.table.Table:
    """Sum up each of the three ways in a row."""
    leaves = [leaf for result in results for leaf in result.report.leaves]
    passed = sum(result.report.ok for result in results)
    resolution = max(leaf.resolution for leaf in leaves)
    orders = [leaf.order for leaf in leaves if not np.isnan(leaf.order)]
    largest = max(result.autodiff for result in results)
    table = rich.table.Table.grid(padding=(0, 2))
    table.add_row(
        "autodiff",
        f"{len(results)} combinations, {len(leaves)} leaves: relative error at most "
        f"{number(largest)} against jax.grad",
    )
    table.add_row(
        "finite differences",
        f"{passed} of {len(results)} pass; an error of {number(resolution)} would have been seen "
        "in any leaf",
    )
    table.add_row("Taylor", f"second remainders shrink by order {min(orders):.2f} or better")
    return table
