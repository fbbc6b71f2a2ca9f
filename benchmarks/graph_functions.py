"""Does a graph have jax.grad's gradient, on hundreds of functions and at their special points?

    python -m benchmarks.graph_functions [--output results.json] [--short | --quick]
        [--only NAME ...] [--autograd FOLDER]
    python -m benchmarks.graph_functions --table results.json

The functions are those of ``benchmarks.functions``, of JAX and optax, each at an ordinary point and
at its special ones (0, 1, ties, ends of the domain).  ``graph.grad`` in float64 and in float32, and
``graph.trace``, are compared with ``jax.grad``.

Nobody here wrote the tests of HIPS/autograd: with ``--autograd FOLDER``, its folder ``tests``, they
are run with jax.numpy in place of autograd's, and their checks compare the same three gradients.
"""

import argparse
import importlib
import json
import os
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import functions, protocol
from jaxbp import graph

EQUAL, UNDEFINED, NOT_FINITE = "equal", "f is not finite", "jax.grad is not finite"
COMPLEX, UNCOMPARED = "complex", "jax.grad raises"
ASKED = "f asks in Python for a number"  # which a graph refuses by name
ULPS = 1_000  # units in the last place of the largest entry, or of 1, that count as rounding

# One function at one point


def verdict(f: Callable[..., Any], args: tuple[Any, ...], argnums: tuple[int, ...]) -> str:
    """How the graph's gradients compare with jax.grad's: "equal", or what they are instead."""

    def of_those(*chosen: Any) -> Any:
        """f, as a function of what it is differentiated by."""
        given = dict(enumerate(args)) | dict(zip(argnums, chosen, strict=True))
        return f(*given.values())

    chosen = tuple(args[n] for n in argnums)
    try:
        expected = jax.grad(f, argnums)(*args)
    except (TypeError, ValueError, NotImplementedError, jax.errors.JAXTypeError) as error:
        return f"{UNCOMPARED}: {first_line(error)}"
    try:
        by_grad = graph.grad(f, argnums)(*args)
    except (TypeError, NotImplementedError, ValueError, AttributeError) as error:
        refused = first_line(error)
        return ASKED if "asks in Python" in refused else f"refused: {refused}"
    eps = coarsest(of_those, chosen)
    word = compared(by_grad, expected, eps)
    if word != EQUAL or jax.tree.leaves(args)[0].dtype == np.float32:
        return word
    try:
        traced = graph.trace(of_those, *chosen).gradients
    except graph.DomainError:
        return word if not np.isfinite(f(*args)) else "refused: DomainError, though f is finite"
    except (TypeError, NotImplementedError, ValueError, AttributeError) as error:
        return f"refused by trace: {first_line(error)}"
    return compared(traced, expected, eps)


def compared(got: Any, expected: Any, eps: float) -> str:
    """ "equal" where every entry is jax.grad's, where that is finite; else the largest difference.

    Rounding, in units eps, is measured by the largest entry of the whole gradient, and by 1.
    """
    sides = [list(map(np.asarray, jax.tree.leaves(tree))) for tree in (got, expected)]
    kinds = [[f"{leaf.dtype}{list(leaf.shape)}" for leaf in side] for side in sides]
    if kinds[0] != kinds[1]:
        return f"{kinds[0]}, not {kinds[1]}"
    mine, right = (np.concatenate([leaf.ravel() for leaf in side]) for side in sides)
    finite = np.isfinite(right)
    if not np.any(finite):
        return NOT_FINITE
    worst = np.max(np.abs(mine[finite] - right[finite]))
    allowed = ULPS * eps * np.max(np.abs(right[finite]), initial=1)
    return EQUAL if worst <= allowed else f"differs by {worst:.2g}"


def coarsest(f: Callable[..., Any], args: tuple[Any, ...]) -> float:
    """The unit in the last place of the numbers that f computes with: some of JAX's functions,
    such as attention, compute in float32 whatever they are given."""
    text = str(jax.make_jaxpr(f)(*args))
    return float(jnp.finfo(jnp.float32 if ":f32[" in text else jnp.float64).eps)


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def checked(function: functions.Function) -> dict[str, Any]:
    """The verdicts on a function, by point and dtype."""
    cell: dict[str, Any] = {"name": function.expression, "group": function.group, "verdicts": {}}

    def phi(*args: Any) -> Any:
        return functions.weighted_sum(function.at(*args))

    for dtype, (point, given) in product(functions.DTYPES, function.points.items()):
        with jax.enable_x64(dtype == "float64"):
            args = tuple(a.astype(dtype) if a.dtype == np.float64 else a for a in given)
            args = tuple(jnp.asarray(a) for a in args)
            argnums = tuple(n for n, a in enumerate(args) if a.dtype == dtype)
            word = verdict(phi, args, argnums)
        cell["verdicts"][f"{point}, {dtype}"] = word
    return cell


# The tests of HIPS/autograd


class AutogradTests:
    """The files of its folder ``tests``, run with JAX in the place of autograd."""

    def __init__(self, folder: Path, run: protocol.Run) -> None:
        self.folder, self.run = folder, run
        self.running = ""  # the test that is
        self.skipped = 0  # tests that there was no time for
        self.words: dict[str, list[str]] = defaultdict(list)  # verdicts, by the test

    def check_grads(self, f: Any, *_: Any, **__: Any) -> Callable[..., None]:
        """autograd's: the check of f at given arguments."""

        def check(*args: Any, **options: Any) -> None:
            args = tuple(jax.tree.map(jnp.asarray, arg) for arg in args)
            leaves = jax.tree.leaves(args)
            if any(jnp.iscomplexobj(leaf) for leaf in leaves):
                self.words[self.running].append(COMPLEX)
                return

            def phi(*args: Any) -> Any:
                return functions.weighted_sum(f(*args, **options))

            argnums = tuple(n for n, arg in enumerate(args) if is_real_tree(arg))
            if argnums:
                self.words[self.running].append(verdict(phi, args, argnums))

        return check

    def combo_check(self, f: Any, *_: Any, **__: Any) -> Callable[..., None]:
        """autograd's: the check of f at combinations of arguments and options, the first few."""

        def check(*choices: Any, **options: Any) -> None:
            combinations = product(product(*choices), product(*options.values()))
            for args, values in islice(combinations, COMBINATIONS):
                self.check_grads(f)(*args, **dict(zip(options, values, strict=True)))

        return check

    def cells(self) -> list[dict[str, Any]]:
        """A cell for each test that compares something, as pytest runs them."""
        with self.in_place_of_autograd(), jax.enable_x64(True):
            plugins = ("cacheprovider", "xdist", "randomly")
            alone = [part for name in plugins for part in ("-p", f"no:{name}")]
            alone += ["-c", os.devnull, "--continue-on-collection-errors"]
            pytest.main([str(self.folder), "-q", "--tb=line", *alone], plugins=[self])
        if self.skipped:
            self.run.left_out.append(f"{self.skipped} tests of autograd")
        verdicts = {
            name: {str(n): word for n, word in enumerate(words)}
            for name, words in self.words.items()
        }
        return [{"name": name, "group": GROUP, "verdicts": verdicts[name]} for name in verdicts]

    def pytest_runtest_call(self, item: Any) -> None:
        """pytest's hook, called before each test."""
        self.running = f"{item.path.stem}.{item.name}"
        if self.run.seconds_left() < 0:
            self.skipped += 1
            pytest.skip("no time left")

    @contextmanager
    def in_place_of_autograd(self) -> Iterator[None]:
        """Modules of autograd's names: those of JAX, and the checks above."""
        checks = dict.fromkeys(("check_grads", "check_vjp", "check_jvp"), self.check_grads)
        scipy = {
            name: importlib.import_module(f"jax.scipy.{name}")
            for name in ("special", "stats", "linalg", "signal", "integrate")
        }
        scipy |= {
            f"stats.{name}": each
            for name, each in vars(scipy["stats"]).items()
            if isinstance(each, types.ModuleType)
        }
        unknown = {"__getattr__": lambda name: raise_unknown}
        containers = {"dict": dict, "list": list, "tuple": tuple, "isinstance": isinstance}
        numpy = vars(jnp) | {"random": np.random}
        made = [
            module("autograd", grad=graph.grad, jacobian=jax.jacobian, **containers, **unknown),
            *(
                module(f"autograd.{name}", **unknown)
                for name in ("core", "extend", "tracer", "wrap_util")
            ),
            *(module(f"autograd.misc{name}", **unknown) for name in ("", ".flatten", ".tracers")),
            module("autograd.test_util", combo_check=self.combo_check, **checks, **unknown),
            module("autograd.builtins", **containers),
            module("autograd.numpy", **numpy),
            module("autograd.numpy.linalg", **vars(jnp.linalg)),
            module("autograd.numpy.random", **vars(np.random)),
            module("autograd.scipy", **scipy),
            *(module(f"autograd.scipy.{name}", **vars(each)) for name, each in scipy.items()),
        ]
        for parent, child in product(made, repeat=2):
            if child.__name__.rpartition(".")[0] == parent.__name__:
                setattr(parent, child.__name__.rpartition(".")[2], child)
        modules = {each.__name__: each for each in made}
        path = [str(self.folder), *sys.path]
        with mock.patch.dict(sys.modules, modules), mock.patch("sys.path", path):
            sys.modules.pop("numpy_utils", None)
            yield


def module(name: str, /, **contents: Any) -> types.ModuleType:
    """A module of that name, in which others may be."""
    made = types.ModuleType(name)
    vars(made).update({key: value for key, value in contents.items() if key not in OF_A_MODULE})
    vars(made)["__path__"] = []
    return made


def raise_unknown(*_: Any, **__: Any) -> None:
    raise NotImplementedError("of autograd, without a counterpart here")


GROUP = "tests of autograd"
COMBINATIONS = 4  # of arguments and options in one of its checks
OF_A_MODULE = {"__name__", "__spec__", "__loader__", "__path__", "__package__"}


def is_real_tree(tree: Any) -> bool:
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)


# The table

EXPLANATION = """\
Each function at an ordinary point and at its special ones (0, 1, ties, ends of the domain), in
float64 by `graph.grad` and by `graph.trace`, in float32 by `graph.grad`; of the tests of autograd
each check, in float64, at up to four combinations of arguments. Equal: every entry is that of
`jax.grad`, where that is finite, up to rounding. Where f itself is not finite, `graph.trace` says
at which node instead."""


def short(word: str) -> str:
    return word.split(":", maxsplit=1)[0]


def counted(cells: list[dict[str, Any]]) -> Counter[str]:
    """How often there was each verdict."""
    return Counter(short(word) for cell in cells for word in cell["verdicts"].values())


def markdown(result: dict[str, Any]) -> str:
    """Counts of verdicts by group, then whatever is not equal."""
    cells = result["cells"]
    columns = ("functions", "number", "comparisons", "gradients")
    rows = []
    for group in [*dict.fromkeys(cell["group"] for cell in cells), "all"]:
        chosen = [cell for cell in cells if group in {cell["group"], "all"}]
        words = "; ".join(f"{n} {word}" for word, n in sorted(counted(chosen).items()))
        comparisons = str(sum(len(cell["verdicts"]) for cell in chosen))
        rows.append(protocol.line(group, str(len(chosen)), comparisons, words))
    others = [
        f"`{cell['name']}` ({at}: {word})" for cell in cells for at, word in differences(cell)
    ]
    told = f"Not equal: {'; '.join(others)}." if others else "No gradient differs."
    return f"{protocol.table(columns, rows, EXPLANATION)}\n\n{told}"


def differences(cell: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The points of a cell at which a gradient is refused or another than jax.grad's."""
    expected = {EQUAL, NOT_FINITE, COMPLEX, UNCOMPARED, ASKED}
    return ((at, word) for at, word in cell["verdicts"].items() if short(word) not in expected)


def measure(run: protocol.Run) -> dict[str, Any]:
    """Compare the functions that are asked for, and print the table."""
    options = {"only": None, "autograd": None} | vars(run.options)
    chosen = functions.functions()[:: protocol.extent(run, 1, 12, 100)]
    if options["only"] is not None:
        chosen = [
            f for f in functions.functions() if any(w in f.expression for w in options["only"])
        ]
    kept = {}
    if run.output is not None and options["only"] is not None and run.output.exists():
        kept = {cell["name"]: cell for cell in json.loads(run.output.read_text())["cells"]}
    for cell in run.cells(chosen, checked, lambda function: function.expression):
        kept[cell["name"]] = told(cell)
        run.keep({"cells": list(kept.values())})
    if options["autograd"]:
        for cell in AutogradTests(options["autograd"], run).cells():
            kept[cell["name"]] = told(cell)
    result = {"cells": list(kept.values())}
    protocol.show(markdown(result))
    return result


def told(cell: dict[str, Any]) -> dict[str, Any]:
    """The cell, which is printed where something differs."""
    for at, word in differences(cell):
        print(f"{cell['name']}, {at}: {word}", flush=True)
    return cell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="*", help="those whose expression has one of these words")
    parser.add_argument("--autograd", type=Path, help="the folder tests of HIPS/autograd")


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown, add_arguments)
