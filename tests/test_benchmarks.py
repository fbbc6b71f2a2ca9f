"""The benchmarks run, and their page is that of the committed results; no test is of a time."""

import argparse
import json

import pytest

from benchmarks import curvature, per_example, report

QUICK = argparse.Namespace(quick=True)


def test_the_page_is_that_of_the_committed_results():
    assert (report.HERE / "README.md").read_text() == report.text()


@pytest.mark.parametrize("benchmark", [per_example, curvature])
def test_every_contender_agrees_and_the_table_can_be_written(benchmark, capsys):
    result = benchmark.measure(QUICK)
    table = benchmark.markdown(json.loads(json.dumps(result)))
    (cell,) = result["cells"]
    assert f"| {cell['network']} |" in table
    assert table.splitlines()[2] in capsys.readouterr().out


def test_what_is_too_large_is_left_out_and_said_so(monkeypatch):
    monkeypatch.setattr(per_example, "MEMORY_LIMIT", 40_000)
    monkeypatch.setattr(per_example, "FUSED_LIMIT", 10_000)
    row = per_example.markdown(per_example.measure(QUICK)).splitlines()[2]
    assert row.count("GiB)") == 3
    assert row.count("too slow)") == 1
