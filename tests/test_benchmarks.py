"""The benchmarks run, and their page shows the committed results; no test asserts a time.

By default the quickest benchmark runs; the others are slow.
"""

import importlib
import json
import math
import os
import re
import sys
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import cpu_compiler

import jaxbp
from benchmarks import (
    accelerator,
    asking,
    checkers,
    functions,
    graph_functions,
    kernels,
    limit,
    manual_vs_auto,
    peers,
    per_example,
    protocol,
    report,
    scaling,
    training,
)
from benchmarks.gradient_bugs import MUTANTS
from benchmarks.problems import problem
from benchmarks.reported_bugs import REPORTED
from jaxbp import activations

SLOW = [
    "manual_vs_auto",
    "latency",
    "search",
    "limit",
    "scaling",
    "checkers",
    "error_bars",
    "functions",
    "graph_functions",
    "graph_page",
    "per_example",
    "curvature",
    "tables",
    "kills",
    "lost_processes",
    "scale",
    "streams",
]
MEASURED = [pytest.param(name, marks=pytest.mark.slow) for name in ("training", *SLOW)]


def test_the_page_is_that_of_the_committed_results():
    assert (report.HERE / "README.md").read_text() == report.text()


@pytest.mark.parametrize("name", MEASURED)
def test_contenders_agree_and_the_table_can_be_written(name, capsys):
    benchmark = importlib.import_module(f"benchmarks.{name}")
    run = protocol.Run(quick=True)
    result = run.keep(benchmark.measure(run), complete=True)
    assert (result["complete"], run.failed) == (True, {})
    table = benchmark.markdown(json.loads(json.dumps(result)))
    assert table.splitlines()[2] in capsys.readouterr().out


def test_each_device_has_a_section_and_its_own_text(monkeypatch, tmp_path):
    committed = json.loads((report.HERE / "results" / "training-cpu.json").read_text())
    on_gpu = committed["conditions"] | {"device": "Some GPU"}
    partial = {"complete": False, "left_out": ["training of 784-512-512-10"], "failed": {}}
    (tmp_path / "results").mkdir()
    for name, result in (("cpu", committed), ("gpu", committed | partial | {"conditions": on_gpu})):
        protocol.write(tmp_path / "results" / f"training-{name}.json", result)
    monkeypatch.setattr(report, "HERE", tmp_path)
    _, of_cpu, of_gpu = re.split("^### ", report.section("training"), flags=re.MULTILINE)
    assert of_cpu.startswith("cpu\n")
    assert of_gpu.startswith("Some GPU\n")
    assert ("TF32" in of_cpu, "TF32" in of_gpu) == (False, True)
    assert "Left out for lack of time: training of 784-512-512-10.\n" in of_gpu


@pytest.mark.slow
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
            "wrong": protocol.compiled(lambda x: 1.05 * jnp.sin(x), jnp.ones(3)),
        }

    with pytest.raises(AssertionError):
        protocol.agreeing(build)
    assert set(protocol.agreeing(build, tolerance=0.1)) == {"right", "wrong"}


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
    row = per_example.markdown(per_example.measure(protocol.Run(quick=True))).splitlines()[2]
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


# The checker on functions of JAX, and on reported bugs


def test_a_stopped_operand_loses_its_term():
    """x sin(x) has two: sin(x) and x cos(x)."""
    phi = functions.objective(functions.Function("x*jnp.sin(x)", "", {}))
    claimed, x = functions.gradient(phi, (0,)), np.float32(0.7)
    operands = list(functions.operands(jax.make_jaxpr(phi)(x, functions.Wrong().argument()).jaxpr))
    found = [
        float(claimed(x, functions.Wrong(stopped=n).argument())[0]) / np.cos(1.0)
        for n in range(-1, len(operands))
    ]
    sine, cosine = np.sin(0.7), 0.7 * np.cos(0.7)
    assert found[0] == pytest.approx(sine + cosine, rel=1e-5)
    for term in (sine, cosine, 0):
        assert any(value == pytest.approx(term, rel=1e-5) for value in found[1:])


@pytest.mark.parametrize(
    ("at", "claim", "is_one"), [(0, 0.5, 1), (0, 1.1, 0), (2, 1, 1), (2, 1.01, 0)]
)
def test_a_subgradient_lies_between_the_slopes_around(at, claim, is_one):
    """Of |x|: at 0 between -1 and 1, elsewhere the slope alone."""
    slope = jax.grad(jnp.abs)
    args = (np.float32(at),)
    assert functions.is_subgradient((claim,), lambda x: (slope(x),), args, (0,)) == bool(is_one)


def committed(name):
    return json.loads((report.HERE / "results" / f"{name}-cpu.json").read_text())


def test_no_committed_verdict_on_a_function_is_wrong():
    cells = committed("functions")["cells"]
    assert {cell["name"] for cell in cells} == {f.expression for f in functions.functions()}
    assert len(cells) >= 300
    assert functions.WRONG not in json.dumps(cells)


def test_no_committed_gradient_of_a_graph_differs():
    cells = committed("graph_functions")["cells"]
    of_jax = [cell for cell in cells if cell["group"] != graph_functions.GROUP]
    assert {cell["name"] for cell in of_jax} == {f.expression for f in functions.functions()}
    assert not [at for cell in cells for at in graph_functions.differences(cell)]


def test_another_gradient_of_a_graph_would_be_seen():
    right = (jnp.array([1.0, jnp.inf]), jnp.ones(2))
    assert graph_functions.compared(right, right, 1e-16) == graph_functions.EQUAL
    off = (jnp.array([1.0, 5.0]), jnp.array([1.0, 1.001]))
    assert graph_functions.compared(off, right, 1e-16) == "differs by 0.001"
    lost = (jnp.array([jnp.nan, 5.0]), jnp.ones(2))
    assert graph_functions.compared(lost, right, 1e-16) == "differs by nan"


def test_the_checker_is_wrong_about_no_bug_and_sure_of_every_reported_one():
    rows = committed("checkers")["bugs"]
    assert rows.keys() == REPORTED.keys() | MUTANTS.keys()
    marks = {name: checkers.mark(row[asking.OURS]["answers"]) for name, row in rows.items()}
    assert "✗" not in "".join(marks.values()), marks
    assert {marks[name] for name in REPORTED} == {"✓✓ ✓✓"}, marks


# Runs: what is left out, cut off or fails


def test_a_result_in_a_folder_is_named_after_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "_module", lambda: "benchmarks.limit")
    monkeypatch.setattr(protocol, "device_name", lambda: "some-gpu")
    protocol.Run(output=tmp_path).keep({"cells": []})
    assert [path.name for path in tmp_path.iterdir()] == ["limit-some-gpu.json"]
    result = json.loads((tmp_path / "limit-some-gpu.json").read_text())
    assert {"command", "device", "jax", "dtype", "precision", "processor"} <= set(
        result["conditions"]
    )


def test_a_run_keeps_what_it_has_after_every_cell(tmp_path):
    """So that nothing but the cell in hand is lost with the process."""
    run = protocol.Run(output=tmp_path / "result.json")
    cells = []
    for cell in run.cells([1, 2, 3], lambda item: 10 * item):
        cells.append(cell)
        run.keep({"cells": cells})
        result = json.loads(run.output.read_text())
        assert (result["cells"], result["complete"]) == (cells, False)
    assert cells == [10, 20, 30]
    assert run.keep({"cells": cells}, complete=True)["complete"]
    assert json.loads(run.output.read_text())["complete"]


def test_what_there_is_no_time_for_is_left_out_and_said_so(monkeypatch, capsys):
    """Nothing is begun that would take longer than is left, going by the longest so far."""
    now = 0.0
    monkeypatch.setattr(protocol.time, "monotonic", lambda: now)

    def takes(seconds):
        nonlocal now
        now += seconds
        return seconds

    run = protocol.Run(minutes=1)
    assert list(run.cells([10, 25, 20, 1], takes, "{} seconds".format)) == [10, 25]
    assert run.left_out == ["20 seconds", "1 seconds"]
    assert list(run.cells([5], takes, expected=30)) == []
    assert "left out, as the time is over: 20 seconds\n" in capsys.readouterr().out
    result = run.keep({"cells": []}, complete=True)
    assert not result["complete"]
    assert protocol.missing(result) == (
        "This run did not measure everything. Left out for lack of time: 20 seconds, 1 seconds, 5."
    )


def test_a_cell_that_fails_does_not_take_the_others_with_it(capsys):
    run = protocol.Run()
    assert list(run.cells([1, 0, 2], lambda item: 2 // item)) == [2, 1]
    failure = "ZeroDivisionError: integer division or modulo by zero"
    assert run.failed == {"0": failure}
    assert capsys.readouterr().err == f"FAILED: 0: {failure}\n"
    result = run.keep({"cells": []}, complete=True)
    assert not result["complete"]
    assert f"Failed: 0 ({failure})." in protocol.missing(result)


def run_of(name, *flags):
    """A benchmark's command, in this process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [name, *map(str, flags)])
        benchmark = importlib.import_module(f"benchmarks.{name}")
        protocol.command(benchmark.__doc__, benchmark.measure, benchmark.markdown)


def test_a_run_without_time_still_writes_a_result_that_prints(tmp_path, capsys):
    path = tmp_path / "limit.json"
    run_of("limit", "--quick", "--minutes", 0, "--output", path)
    assert not json.loads(path.read_text())["complete"]
    capsys.readouterr()
    run_of("limit", "--table", path)
    assert "Left out for lack of time: peak of " in capsys.readouterr().out


@pytest.mark.parametrize("on_cpu", [True, False])
def test_items_are_built_side_by_side_where_the_host_has_cores_to_spare(monkeypatch, on_cpu):
    monkeypatch.setattr(protocol, "on_cpu", lambda: on_cpu)
    done = []

    def build(item):
        done.append(f"build {item}")
        return 10 // item

    def measure(item, built):
        done.append(f"measure {item}")
        return item + built

    run = protocol.Run()
    assert list(run.cells([2, 0, 5], measure, build=build)) == [7, 7]
    assert list(run.failed) == ["0"]
    if on_cpu:
        assert done == ["build 2", "measure 2", "build 0", "build 5", "measure 5"]
    else:
        assert sorted(done[:3]) == ["build 0", "build 2", "build 5"]
    late = protocol.Run(minutes=0)
    assert not list(late.cells([1, 2], measure, build=build))
    assert late.left_out == ["1", "2"]


@pytest.mark.parametrize("name", ["training", "limit", "scaling", "manual_vs_auto", "one_kernel"])
def test_a_partial_result_has_a_table(name):
    benchmark = importlib.import_module(f"benchmarks.{name}")
    run = protocol.Run(quick=True, minutes=0)
    result = run.keep(benchmark.measure(run), complete=True)
    assert run.left_out
    assert isinstance(benchmark.markdown(result), str)


def test_a_part_that_hangs_is_killed_and_the_others_run(monkeypatch, tmp_path, capfd):
    """It and what it started; the parts before it are on disk, and the next ones run."""
    writes = "import sys; open(sys.argv[1], 'w').close()"
    hangs = "import time; time.sleep(1800)"

    def command_of(name, flags, seconds):
        return [sys.executable, "-c", *{"hanging": [hangs]}.get(name, [writes, tmp_path / name])]

    monkeypatch.setattr(accelerator, "command_of", command_of)
    shares = {"first": 1, "hanging": 1e-4, "last": 1}
    ends = accelerator.run(shares, minutes=30, flags=[])
    assert ends == {"first": "ended", "hanging": "cut off", "last": "ended"}
    assert {path.name for path in tmp_path.iterdir()} == {"first", "last"}
    assert "hanging: cut off after 0 s" in capfd.readouterr().out


def test_the_parts_of_an_accelerator_share_its_time(monkeypatch):
    """What one leaves over goes to the later ones, and each plans with less than it has."""
    now, given = 0.0, {}

    def ended(command, seconds):
        nonlocal now
        name, minutes = command[2].removeprefix("benchmarks."), float(command[-1])
        given[name] = seconds
        assert minutes == pytest.approx(accelerator.ITS_OWN * seconds / 60, abs=1e-3)
        now += {"first": 10, "second": 60, "third": 5}[name]
        return "ended"

    monkeypatch.setattr(accelerator.time, "monotonic", lambda: now)
    monkeypatch.setattr(accelerator, "ended", ended)
    accelerator.run({"first": 1, "second": 2, "third": 1}, minutes=2, flags=["--short"])
    assert given == pytest.approx({"first": 30, "second": 110 * 2 / 3, "third": 50})


def test_no_committed_result_is_overwritten_unless_its_folder_is_named(monkeypatch, tmp_path):
    flags = []

    def run(shares, minutes, of_each):
        flags[:] = of_each
        return dict.fromkeys(shares, "ended")

    monkeypatch.setattr(accelerator, "run", run)
    monkeypatch.setattr(accelerator.tempfile, "tempdir", str(tmp_path))
    for extent in ([], ["--short"], ["--quick"]):
        monkeypatch.setattr(sys, "argv", ["accelerator", *extent])
        with pytest.raises(SystemExit) as ended:
            accelerator.main()
        assert not ended.value.code
        assert flags[:-1] == [*extent, "--output"]
        assert os.path.dirname(flags[-1]) == str(tmp_path)


# Training


def test_a_contender_that_learns_something_else_is_not_timed(monkeypatch):
    def by_another(case):
        return lambda seed=0: [(2 * weight, bias) for weight, bias in case.weights]

    monkeypatch.setitem(peers.PEERS, peers.LOOP, peers.Peer(by_another, "jax"))
    run = protocol.Run(quick=True)
    (cell,) = training.measure(run)["cells"]
    assert peers.LOOP not in cell["contenders"]
    assert run.failed[f"{peers.LOOP} at 8-16-3"].startswith("AssertionError: JAX + optax: loss ")


def test_pytorch_trains_to_the_same_weights_in_whole_steps():
    """A CUDA graph's places in memory, and one for the smaller last minibatch; on a CPU the step
    itself stands in for the graph."""
    pytest.importorskip("torch")
    case = training.case_of(training.Network((8, 16, 3), 70, 16, epochs=2, learning_rate=0.05))
    eager, graphs = (peers.by_pytorch(case, way=way)(seed=3) for way in (None, peers.GRAPH))
    assert jaxbp.compare(graphs, eager).relative_error == 0


def test_the_table_for_a_gpu_is_made_of_its_results(tmp_path):
    """A step is a training over its steps; the compiled one is the limit's."""
    run = protocol.Run()
    times = {"median": 0.5, "ratio": 0.25}
    cell = {
        "network": "8-16-3, batch 16",
        "rows": 64 + 1,
        "batch_size": 16,
        "epochs": 1000,
        "contenders": {
            peers.OURS: {"seconds": times, "samples_per_second": 65_000 / 0.5},
            peers.GRAPH: {"seconds": times, "samples_per_second": 1.0},
        },
    }
    step = {"network": "8-16-3", "batch": 16, "mode": "TF32", "steps": 10}
    step["step"] = {"seconds": {"median": 70e-6}}
    for name, result in (
        ("training", {"others": {"torch": "2"}, "cells": [cell]}),
        ("limit", {"cells": [step, step | {"mode": "float32"}]}),
    ):
        protocol.write(tmp_path / f"{name}-gpu.json", run.keep(result, complete=True))
    table = report.readme_table("gpu", tmp_path).splitlines()
    assert table[2] == "| 8-16-3, batch 16 | 130,000 | 100.0 µs | 7.0 µs | 4.0× |"


# The limit and the kernels of a step


@cpu_compiler
@pytest.mark.parametrize("sizes", [(5, 7, 3), (5, 7, 6, 3)])
def test_the_kernels_of_a_compiled_step_are_counted(sizes):
    """All 3L - 1 products are found, however the compiler calls them."""
    step = limit.contenders(sizes, 4, limit.modes()[0], limit.QUICK)[limit.STEP]
    counted = kernels.of_a_step(step.text())
    assert counted[kernels.PRODUCT] == 3 * (len(sizes) - 1) - 1
    assert counted[kernels.GATHER] >= 1


GPU_STEP = """\
HloModule jit_one_epoch, is_scheduled=true

%fused_dot (p: f32[32,64], w: f32[128,64]) -> f32[32,128] {
  %p = f32[32,64]{1,0} parameter(0)
  %w = f32[128,64]{1,0} parameter(1)
  ROOT %dot.0 = f32[32,128]{1,0} dot(%p, %w), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%fused_gather (p.1: f32[99,64], i: s32[32]) -> f32[32,64] {
  %p.1 = f32[99,64]{1,0} parameter(0)
  %i = s32[32]{0} parameter(1)
  ROOT %gather.5 = f32[32,64]{1,0} gather(%p.1, %i), offset_dims={1}, slice_sizes={1,64}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.9 = f32[] add(%a, %b)
}

%fused_reduce (p.2: f32[32,128]) -> f32[128] {
  %p.2 = f32[32,128]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %reduce.1 = f32[128]{0} reduce(%p.2, %zero), dimensions={0}, to_apply=%add
}

%fused_select (p.3: f32[32,128]) -> f32[32,128] {
  %p.3 = f32[32,128]{1,0} parameter(0)
  ROOT %maximum.1 = f32[32,128]{1,0} maximum(%p.3, %p.3)
}

%body (arg: (s32[], f32[128,64], /*index=2*/f32[99,64], s32[32])) -> (s32[], f32[128,64], f32[99,64], s32[32]) {
  %arg = (s32[], f32[128,64]{1,0}, /*index=2*/f32[99,64]{1,0}, s32[32]{0}) parameter(0)
  %gte.0 = s32[] get-tuple-element(%arg), index=0
  %gte.1 = f32[128,64]{1,0} get-tuple-element(%arg), index=1
  %gte.2 = f32[99,64]{1,0} get-tuple-element(%arg), index=2
  %gte.3 = s32[32]{0} get-tuple-element(%arg), index=3
  %copy.1 = f32[128,64]{1,0} copy(%gte.1)
  %gather_fusion = f32[32,64]{1,0} fusion(%gte.2, %gte.3), kind=kLoop, calls=%fused_gather
  %gemm_fusion = f32[32,128]{1,0} fusion(%gather_fusion, %copy.1), kind=kCustom, calls=%fused_dot
  %cublas = (f32[32,128]{1,0}, s8[4]{0}) custom-call(%gather_fusion, %copy.1), custom_call_target="__cublas$gemm"
  %select_fusion = f32[32,128]{1,0} fusion(%gemm_fusion), kind=kLoop, calls=%fused_select
  %reduce_fusion = f32[128]{0} fusion(%select_fusion), kind=kInput, calls=%fused_reduce
  %add.1 = s32[] add(%gte.0, %gte.0)
  %fusion-start = ((f32[]), f32[128,64]{1,0}, u32[]) fusion-start(%reduce_fusion), kind=kLoop, calls=%fused_select
  %fusion-done = f32[128,64]{1,0} fusion-done(%fusion-start)
  %bitcast.1 = f32[128,64]{1,0} bitcast(%fusion-done)
  ROOT %tuple.1 = (s32[], f32[128,64]{1,0}, f32[99,64]{1,0}, s32[32]{0}) tuple(%add.1, %bitcast.1, %gte.2, %gte.3)
}

%condition (arg.1: (s32[], f32[128,64], f32[99,64], s32[32])) -> pred[] {
  %arg.1 = (s32[], f32[128,64]{1,0}, f32[99,64]{1,0}, s32[32]{0}) parameter(0)
  %gte.9 = s32[] get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[] compare(%gte.9, %gte.9), direction=LT
}

ENTRY %main (p.9: f32[128,64]) -> f32[128,64] {
  %p.9 = f32[128,64]{1,0} parameter(0)
  %copy.9 = f32[128,64]{1,0} copy(%p.9)
  %while.1 = (s32[], f32[128,64]{1,0}, f32[99,64]{1,0}, s32[32]{0}) while(%copy.9), condition=%condition, body=%body
  ROOT %gte.8 = f32[128,64]{1,0} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501, as XLA prints it


def test_the_kernels_of_a_gpu_are_told_apart():
    """By what is in a fusion, by the library that is called, and by where a result goes, also one
    that comes later; only the loop's body counts."""
    assert kernels.of_a_step(GPU_STEP) == Counter(
        {
            kernels.PRODUCT: 2,
            kernels.GATHER: 1,
            kernels.UPDATE: 2,
            kernels.SUM: 1,
            kernels.ENTRYWISE: 1,
            kernels.COPY: 1,
        }
    )


def test_a_program_without_a_loop_has_no_step():
    with pytest.raises(ValueError, match="text: got a program without a loop, expected one with"):
        kernels.of_a_step(GPU_STEP[: GPU_STEP.index("ENTRY")])


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
    assert math.isnan(scaling.exponent([2], [3]))


@pytest.mark.slow
def test_many_networks_on_an_accelerator_are_set_beside_their_epochs_alone(monkeypatch):
    monkeypatch.setattr(protocol, "on_cpu", lambda result=None: False)
    cell = scaling.many_networks(scaling.QUICK_MANY[0], 0.0)
    assert set(cell["ways"]) == {scaling.LOOP, scaling.FIT_MANY, scaling.EPOCHS}
    heading = scaling.networks({"networks": [cell]}).splitlines()[0]
    assert heading.endswith("| fit_many over vmapped epochs alone |")


@jax.default_matmul_precision("highest")
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
    assert "(target" not in page
    tables = re.findall(r"\n\n(?:\|.*\n)+\n(.)", page)
    assert len(tables) == page.count("|---|\n")
    assert all(re.match(r'[\w`"]', first) for first in tables)
