"""Tests of the test: every planted bug is caught, most are named, and no right gradient fails."""

import re

import jax
import numpy as np
import pytest
from mutants import CORRECT, MUTANTS

from jaxbp import gradcheck

NAMES = sorted(MUTANTS)


def test_there_are_enough_of_them():
    assert len(MUTANTS) >= 40
    assert len(CORRECT) >= len(MUTANTS)
    assert sum(correct.draws for correct in CORRECT.values()) >= 1000
    assert sum(bool(expected) for _, expected in MUTANTS.values()) >= len(MUTANTS) / 2


@pytest.mark.parametrize("part", range(4))  # neighbours share a network, compiled once a process
def test_every_planted_bug_is_caught_and_named_as_expected(part):
    """A network's first bug is claimed as a function and the others as values: to compile a claim
    takes longer than to check it."""
    share = -(-len(MUTANTS) // 4)
    missed, networks = {}, set()
    for name in list(MUTANTS)[part * share : (part + 1) * share]:
        make, expected = MUTANTS[name]
        with jax.enable_x64(True):
            case = make()
            if case.f in networks and name != "non-deterministic":
                case = case._replace(grads=case.grads(*case.args))
            networks.add(case.f)
        with jax.enable_x64("float32" not in name):
            report = gradcheck(case.f, *case.args, grads=case.grads, **case.options)
        said = [report.diagnosis, *(leaf.diagnosis for leaf in report.leaves)]
        if report.verdict != "fail":
            missed[name] = report.verdict
        elif expected and not any(re.search(expected, words) for words in said):
            missed[name] = said
    assert not missed


#: what cannot be told, by anyone who sees only values
UNDECIDABLE = {
    "swamped by an offset",
    "zeros",
    "saturated",
    "cancellation",
    "deep sigmoid network",
    "bfloat16 inside",
}


@pytest.mark.parametrize("name", CORRECT)
def test_a_right_gradient_never_fails_and_mostly_passes(name):
    correct, verdicts = CORRECT[name], []
    for draw in range(correct.draws):
        args = correct.draw(np.random.default_rng([draw, 11]))
        report = gradcheck(correct.f, *args, key=jax.random.key(draw), **correct.options)
        assert report.verdict != "fail", (args, str(report))
        verdicts.append(report.verdict)
    assert name in UNDECIDABLE or verdicts.count("pass") >= len(verdicts) * 0.7
