"""Tests of the test: every planted bug is caught, most are named, and no right gradient fails.

By default every other bug is planted, and a right gradient of each kind is checked at a few points;
what needs a network of its own, every gradient and all thousand points are slow.
"""

import re

import jax
import numpy as np
import pytest
from combinations import thinned

from benchmarks.gradient_bugs import CORRECT, MUTANTS
from jaxbp import gradcheck

#: bugs whose network takes long, or serves this bug alone while another has a similar one
COSTLY = [
    "hidden error clipped",
    "2 of the squared error forgotten",
    "Huber's error unclipped",
    "absolute error without its sign",
    "Poisson's error without its target",
    "one entry of 784×300 off by 1 %",
    "one entry of 784×300 off by its size, float32",
]
CHEAP = [name for name in MUTANTS if name not in COSTLY]


def part(number, names):
    """A quarter of them: neighbours share a network, compiled once a process."""
    size = -(-len(names) // 4)
    return names[number * size : (number + 1) * size]


def test_there_are_enough_of_them():
    assert len(MUTANTS) >= 40
    assert len(CORRECT) >= len(MUTANTS)
    assert sum(correct.draws for correct in CORRECT.values()) >= 1000
    assert sum(mutant.diagnosis != "" for mutant in MUTANTS.values()) >= len(MUTANTS) / 2


def missed(names, *, by_value):
    """The bugs that are not caught, or not named as expected, and the verdict or diagnosis of each.

    By value, a network's first bug is claimed as a function and the others as values: to compile a
    claim takes longer than to check it.
    """
    found, networks = {}, set()
    for name in names:
        mutant = MUTANTS[name]
        with jax.enable_x64(True):
            case = mutant.make()
            if by_value and case.f in networks and name != "non-deterministic":
                case = case._replace(grads=case.grads(*case.args))
            networks.add(case.f)
        with jax.enable_x64("float32" not in name):
            report = gradcheck(case.f, *case.args, grads=case.grads, **case.options)
        if name == "bfloat16 accumulation" and callable(case.grads):  # all that bfloat16 can know
            assert report.ok
            assert "the claimed gradient passes through bfloat16" in report.notes
            continue
        said = [report.diagnosis, *(leaf.diagnosis for leaf in report.leaves)]
        if report.verdict != "fail":
            found[name] = report.verdict
        elif not any(re.search(mutant.diagnosis, words) for words in said):
            found[name] = said
    return found


@pytest.mark.parametrize("number", thinned(range(4), every=2))
def test_planted_bugs_are_caught_and_named_as_expected(number):
    assert not missed(part(number, CHEAP[::8]), by_value=True)


@pytest.mark.slow
@pytest.mark.parametrize("by_value", [True, False])
@pytest.mark.parametrize("number", range(4))
def test_every_planted_bug_is_caught_and_named_as_expected(number, by_value):
    assert not missed(part(number, list(MUTANTS)), by_value=by_value)


#: cases that nobody can decide from values alone
UNDECIDABLE = {
    "swamped by an offset",
    "zeros",
    "saturated",
    "cancellation",
    "deep sigmoid network",
    "bfloat16 inside",
}

#: one of each kind
CHOSEN = [
    # kinks
    "ReLU network, float32",
    "ReLU network, float64",
    "ReLU units on their kinks",
    "absolute value",
    "maximum with ties",
    "clip",
    # scales
    "tiny argument",
    "large offset",
    # flat and stiff
    "no effect",
    "no effect but for rounding",
    "dead ReLUs",
    "very stiff",
    "cancellation",
    "at a minimum",
    "logarithm near zero",
    # precision
    "half precision argument",
    "float32 inside",
    # kinds of functions and arguments; test_checking has others
    "empty leaf",
]


def in_float64(args):
    """Arguments whose float32 numbers are float64."""

    def wide(leaf):
        return leaf.astype("f8") if getattr(leaf, "dtype", None) == np.float32 else leaf

    return jax.tree.map(wide, args)


def verdicts(name, draws, *, wide=False):
    """The verdicts on a right gradient at several points, in float64 or not; none is fail."""
    correct, found = CORRECT[name], []
    for draw in range(draws):
        args = correct.draw(np.random.default_rng([draw, 11]))
        with jax.enable_x64(wide):
            args = in_float64(args) if wide else args
            report = gradcheck(correct.f, *args, key=jax.random.key(draw), **correct.options)
        assert report.verdict != "fail", (args, str(report))
        found.append(report.verdict)
    return found


@pytest.mark.parametrize("name", thinned(CHOSEN, every=3))
def test_a_right_gradient_of_each_kind_never_fails_and_passes(name):
    found = verdicts(name, draws=3)
    assert name in UNDECIDABLE or set(found) == {"pass"}


@pytest.mark.slow
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", CORRECT)
def test_a_right_gradient_never_fails_and_mostly_passes(name, wide):
    found = verdicts(name, CORRECT[name].draws, wide=wide)
    assert name in UNDECIDABLE or found.count("pass") >= len(found) * 0.7
