"""``jaxbp check``: gradients of jaxbp's own in every combination, or of a user's function."""

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from types import ModuleType
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
from jaxbp.cli.files import PICTURES, new_file
from jaxbp.cli.options import UsageError
from jaxbp.cli.pictures import step_curves
from jaxbp.gradient import Batch, autodiff, backprop, objective
from jaxbp.heads import Head
from jaxbp.model import MLP, Layer, Params
from jaxbp.text import align, number

DEPTHS = (0, 1, 2)  # hidden layers
_STATUS = {"pass": 0, "fail": 1, "inconclusive": 2}
_STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
_SAME = 1e-12  # two ways to the same float64 gradient may differ by this relative error


@dataclass(frozen=True)
class Check:
    """Check gradients: jaxbp's own, of every activation, head and depth, or those of your function.

    For MODULE:FUNCTION the module says at which arguments: FUNCTION_args is a tuple of them, or a
    function that returns one.  FUNCTION_grads, if there is one, is the gradient to check, a tree or
    a function of the same arguments; without it, jax.grad is, by the function's own custom_vjp or
    custom_jvp.  FUNCTION_options, a dict, goes to jaxbp.gradcheck as it is, as {"argnums": 1}.

    Exit status: 0 if all passed, 1 if something failed, 2 if something stayed inconclusive.
    """

    function: Annotated[
        tyro.conf.Positional[str],
        arg(
            metavar="MODULE:FUNCTION",
            help="as in my_package.kernels:attention, or path/to/file.py:attention",
            help_behavior_hint="(default: jaxbp's own backward pass)",
        ),
    ] = ""
    order: Annotated[Literal[1, 2], arg(help="2: the gradient's own gradient too")] = 1
    seed: Annotated[int, arg(help="seed of the directions, and of jaxbp's own networks")] = 0
    plot: Annotated[
        Path | None,
        arg(
            metavar="FILE", help="draw error against step for each leaf, to a new .png, .svg, .pdf"
        ),
    ] = None
    output: Annotated[
        Path | None, arg(metavar="FILE", help="write the report as JSON, to a new file")
    ] = None


def run(options: Check, console: Console) -> int:
    """Carry out the command; the exit status."""
    new_file("--plot", options.plot, PICTURES)
    new_file("--output", options.output)
    if options.function:
        report = check_function(options)
        print_report(report, console)
        record, verdict = report.to_dict(), report.verdict
    else:
        with Progress(console=console, transient=True) as progress:
            total = sum(len(_activations(depth)) * len(heads.BY_NAME) for depth in DEPTHS)
            task = progress.add_task("checking", total=total)
            results = check_all(options, on_each=lambda: progress.advance(task))
        console.print(own_table(results), *own_summary(results), sep="\n")
        report = max(results, key=lambda result: result.error).report
        record = {"combinations": [result.to_dict() for result in results]}
        verdict = worst_verdict([result.verdict for result in results])
    if options.output is not None:
        options.output.write_text(json.dumps(record, indent=2) + "\n")
    if options.plot is not None:
        step_curves(options.plot, report)
    return _STATUS[verdict]


# A user's function


def check_function(options: Check) -> GradientReport:
    """Import the function, with the arguments and options that its module names, and check it."""
    module_name, _, name = options.function.rpartition(":")
    if not module_name or not name:
        raise UsageError(f"{options.function}: expected MODULE:FUNCTION, as in my_module:my_loss")
    module = import_named(module_name)
    f = getattr(module, name, None)
    if not callable(f):
        raise UsageError(f"{options.function}: {module_name} has no function {name}")
    args = getattr(module, f"{name}_args", None)
    if args is None:
        raise UsageError(
            f"{options.function}: {module_name} does not say at which arguments; expected "
            f"{name}_args there, a tuple or a function that returns one"
        )
    args = args() if callable(args) else args
    args = args if isinstance(args, tuple) else (args,)
    grads = getattr(module, f"{name}_grads", None)
    own = getattr(module, f"{name}_options", {})
    try:
        return gradcheck(
            f,
            *args,
            grads=grads,
            **{"key": jax.random.key(options.seed), "order": options.order, **own},
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{options.function}: {error}") from error


def import_named(name: str) -> ModuleType:
    """Import a module by its name, as seen from the working directory, or by its file."""
    try:
        if not name.endswith(".py"):
            sys.path.insert(0, os.getcwd())
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        if spec is None or spec.loader is None or not Path(name).exists():
            raise UsageError(f"{name}: no such file")
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(Path(name).resolve().parent))
        spec.loader.exec_module(module)
        return module
    except (ImportError, SyntaxError) as error:
        raise UsageError(f"{name}: cannot be imported ({error})") from error


def print_report(report: GradientReport, console: Console) -> None:
    """The report as it prints itself, in colours."""
    console.print(Text(report.headline(), _STYLES[report.verdict]))
    table = Text(align(report.table(), console.width))
    for verdict, style in _STYLES.items():
        table.highlight_regex(rf"(?m){verdict}$", style)
    console.print(table)
    for finding in report.findings():
        console.print(finding)
    if report.second_order is not None:
        console.print("\nsecond order, the gradient's own gradient:")
        print_report(report.second_order, console)


# jaxbp's own backward pass


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
            "autodiff": self.autodiff,
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
    key = jax.random.key(options.seed)
    f, grads, by_jax = _programs(depth)
    results = []
    for index, (unit, head) in enumerate(product(_activations(depth), losses)):
        which = np.array([units.index(unit), losses.index(head)], np.int32)
        with jax.enable_x64(True):
            args = (*_point(depth, [options.seed, depth, index]), which)
            report = gradcheck(f, *args, grads=grads, key=key, order=options.order)
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


def own_table(results: list[Combination]) -> rich.table.Table:
    """Tabulate activations by heads: in each cell the largest relative error over all depths."""
    title = f"backprop: largest relative error over {', '.join(map(str, DEPTHS))} hidden layers"
    table = rich.table.Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("")
    for head in heads.BY_NAME:
        table.add_column(head.replace("_", "\n"), justify="right")
    for unit in dict.fromkeys(result.activation for result in results):
        cells = []
        for head in heads.BY_NAME:
            own = [r for r in results if (r.activation, r.head) == (unit, head)]
            verdict = worst_verdict([result.verdict for result in own])
            cells.append(Text(number(max(r.error for r in own)), _STYLES[verdict]))
        table.add_row(unit, *cells)
    return table


def own_summary(results: list[Combination]) -> list[str]:
    """Sum up each of the three ways in a line."""
    leaves = [leaf for result in results for leaf in result.report.leaves]
    passed = sum(result.report.ok for result in results)
    resolution = max(leaf.resolution for leaf in leaves)
    orders = [leaf.order for leaf in leaves if not np.isnan(leaf.order)]
    largest = max(result.autodiff for result in results)
    return [
        f"autodiff            {len(results)} combinations, {len(leaves)} leaves: relative error at "
        f"most {number(largest)} against jax.grad",
        f"finite differences  {passed} of {len(results)} pass; an error of {number(resolution)} "
        "would have been seen in any leaf",
        f"Taylor              second remainders shrink by order {min(orders):.2f} or better",
    ]
