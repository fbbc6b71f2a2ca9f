"""The benchmarks run, and their page shows the committed results; no test asserts a time.

By default the quickest benchmark runs; the others are slow.
"""

import argparse
import importlib
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbp
from benchmarks import limit, manual_vs_auto, per_example, protocol, report, scaling
from benchmarks.problems import problem
from jaxbp import activations

QUICK = argparse.Namespace(quick=True, short=False)

SLOW = ["manual_vs_auto", "limit", "scaling", "per_example", "curvature"]
MEASURED = ["training", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def test_the_page_is_that_of_the_committed_results():
    assert (report.HERE / "README.md").read_text() == report.text()


@pytest.mark.parametrize("name", MEASURED)
def test_contenders_agree_and_the_table_can_be_written(name, capsys):
    benchmark = importlib.import_module(f"benchmarks.{name}")
    table = benchmark.markdown(json.loads(json.dumps(benchmark.measure(QUICK))))
    assert table.splitlines()[2] in capsys.readouterr().out


def test_the_pictures_are_drawn_from_the_committed_results(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import pictures

    pictures.draw("cpu", tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {f"{name}.png" for name in pictures.PICTURES}
    assert all((report.HERE.parent / "docs" / name).exists() for name in drawn)


def test_a_contender_that_disagrees_is_not_timed():
    def build():
        return {
            "right": protocol.compiled(jnp.sin, jnp.ones(3)),
            "wrong": protocol.compiled(lambda x: 1.001 * jnp.sin(x), jnp.ones(3)),
        }

    with pytest.raises(AssertionError):
        protocol.agreeing(build)
    assert set(protocol.agreeing(build, tolerance=0.01)) == {"right", "wrong"}


def test_what_is_too_large_is_left_out_and_said_so():
    """It is never run; nor is what is known to be slow."""
    ours, separate, fused = per_example.OURS, per_example.SEPARATE, per_example.FUSED
    runs = protocol.Contender(lambda: np.ones(3), temporary_bytes=per_example.MEMORY_LIMIT)
    must_not = runs._replace(run=lambda: pytest.fail("was run"))
    large = must_not._replace(temporary_bytes=2 * per_example.MEMORY_LIMIT)
    part = per_example.comparison(
        lambda: {ours: runs, "backprop": runs, separate: large, fused: must_not}, 0, skipped=[fused]
    )
    assert per_example.times_better(part, separate) == "– (8.0 GiB)"
    assert per_example.times_better(part, fused) == "– (too slow)"
    assert per_example.times_better(part, "backprop").endswith("×, 1.0×")


@pytest.mark.slow
def test_the_row_of_what_is_too_large_says_so(monkeypatch):
    monkeypatch.setattr(per_example, "MEMORY_LIMIT", 40_000)
    monkeypatch.setattr(per_example, "FUSED_LIMIT", 10_000)
    row = per_example.markdown(per_example.measure(QUICK)).splitlines()[2]
    assert row.count("GiB)") == 3
    assert row.count("too slow)") == 1


def test_a_ratio_is_taken_round_by_round(monkeypatch):
    """So a slow spell of the machine, which hits a whole round, does not show."""
    seconds = iter([1, 1, 10.0, 5.0, 50.0, 100.0, 2.0, 1.0])  # every second round in reverse
    monkeypatch.setattr(protocol, "_sample", lambda contender, repeats: next(seconds))
    nothing = protocol.Contender(lambda: None)
    timings = protocol.interleaved({"first": nothing, "second": nothing}, rounds=3)
    assert (timings["first"].ratio, timings["second"].ratio) == (1, 2)
    assert timings["second"].median == 5


def test_a_result_in_a_folder_is_named_after_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "_module", lambda: "benchmarks.limit")
    monkeypatch.setattr(protocol, "device_name", lambda: "some-gpu")
    protocol.write(tmp_path, {"cells": []})
    result = json.loads((tmp_path / "limit-some-gpu.json").read_text())
    assert {"command", "device", "jax", "dtype", "precision", "processor"} <= set(
        result["conditions"]
    )


def test_the_floor_is_all_products_of_a_step_and_nothing_else():
    """3L - 1 of them in the compiled loop, none left out or moved out of it."""
    sizes, rows = (5, 7, 6, 3), 4
    case = problem(sizes, rows)
    step = limit.looped(limit.products, 10)
    jaxpr = str(jax.make_jaxpr(step)(case.batch.x, list(case.params)))
    assert jaxpr.count("dot_general[") == 8
    by_hand = 2 * rows * (3 * (5 * 7 + 7 * 6 + 6 * 3) - 5 * 7)
    assert limit.flops(sizes, rows) == by_hand


def test_the_exponent_is_that_of_the_larger_sizes():
    sizes = np.array([1.0, 10, 100, 1000])
    assert scaling.exponent(list(sizes), list(np.maximum(50, sizes**2))) == pytest.approx(2)
    assert scaling.exponent([2, 4], [3, 6]) == pytest.approx(1)


def test_numerical_differentiation_is_the_gradient():
    case = problem((3, 4, 2), 5, activations.tanh)
    _, grads = jax.jit(partial(jaxbp.backprop, case.model))(case.params, case.batch)
    measured = jax.jit(partial(scaling.numerically, case.model))(case.params, case.batch)
    assert jaxbp.compare(measured, grads).relative_error < 1e-3


def cell(time, memory, *, same=1.0, flops=1.0, activation="relu", batch=2048, dtype="float32"):
    """A row of manual_vs_auto: our time and memory over jax.nn's, our time over autodiff's, and our
    FLOPs over both."""

    def entry(ratio, temporary, flops):
        seconds = {"median": 1.0, "lower": 0.99, "upper": 1.01, "ratio": ratio, "rounds": 21}
        counts = {"temporary_mib": temporary, "flops": flops, "bytes_accessed": 1.0}
        return {"seconds": seconds, "compile_seconds": 1.0, **counts}

    return {
        **manual_vs_auto.Cell(activation, 256, 8, batch, dtype)._asdict(),
        "backprop": entry(1.0, 20.0, flops),
        "autodiff": entry(same, 20.0, 1.0),
        "jax.nn": entry(time, 20.0 / memory, 1.0),
        "forward": entry(3.0, 1.0, 0.3),
    }


KEPT = "jax.nn's 12 MiB are kept between calls: no page faults to save"
EQUAL = "no more FLOPs and bytes, its quartiles are 2% apart"
ROUNDED = "δ is rounded to bfloat16, which is emulated here"


@pytest.mark.parametrize(
    ("measured", "note"),
    [
        (cell(0.7, 0.5), ""),
        (cell(0.8, 0.6), ""),
        (cell(0.8, 1.6), KEPT),
        (cell(1.0, 1.0, activation="tanh"), ""),
        (cell(1.0, 1.0, batch=512), ""),
        (cell(0.7, 0.5, same=1.1), f"slower than autodiff: {EQUAL}"),
        (cell(0.7, 0.5, same=1.1, flops=1.2), "slower than autodiff: more FLOPs or bytes"),
        (cell(1.1, 0.5), f"slower than jax.nn: {EQUAL}"),
        (cell(1.1, 1.6, flops=1.2), f"slower than jax.nn: more FLOPs or bytes; {KEPT}"),
        (cell(0.7, 0.5, same=1.1, dtype="bfloat16"), f"slower than autodiff: {ROUNDED}"),
        (cell(1.1, 0.5, dtype="bfloat16"), f"slower than jax.nn: {EQUAL}"),
    ],
)
def test_where_we_are_behind_the_note_says_why(measured, note):
    assert manual_vs_auto.note(measured) == note


def test_tables_say_what_is():
    """No target beside a figure, and a text below every table."""
    page = report.text()
    assert "target" not in page.lower()
    tables = re.findall(r"\n\n(?:\|.*\n)+\n(.)", page)
    assert len(tables) == page.count("|---|\n")
    assert all(re.match(r'[\w`"]', first) for first in tables)
