"""What a run leaves to look at: its report in the run folder, and ``jaxbp runs``."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import jax
import numpy as np
import pytest

for module in ("tyro", "rich", "matplotlib", "safetensors", "sklearn", "platformdirs"):
    pytest.importorskip(module)

from rich.console import Console

import jaxbp
from jaxbp import cli, heads
from jaxbp.checkpoint import Checkpoint
from jaxbp.cli import pages, pictures, predict, report, runs
from jaxbp.diagnostics.health import Health
from jaxbp.interop.exported import plain_preparation

KINDS = ["<script>alert(1)</script>", "a\"b'&amp;{c}", "שלום עולם"]
NAMES = ["<b>x</b>", 'y & "z"', "line\nbreak", "kind"]
DATA = 'we<ird> & "name".csv'


def run(*arguments):
    return cli.main(list(map(str, arguments)))


class Page(HTMLParser):
    """A page's elements, its texts, and whatever it would load."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.loads, self.links = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        for name, value in attributes:
            if name == "src" or (name.endswith("href") and not value.startswith("#")):
                (self.links if tag == "a" else self.loads).append(value)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a table of hostile names, and ``runs`` of it: one whole, three that are not."""
    folder = tmp_path
    monkeypatch.chdir(folder)
    rng = np.random.default_rng(0)
    rows = [[*np.round(rng.normal(size=3), 3), kind] for kind in 20 * KINDS]
    quoted = [
        ['"{}"'.format(str(cell).replace('"', '""')) for cell in row] for row in [NAMES, *rows]
    ]
    (folder / DATA).write_text("\n".join(map(",".join, quoted)), encoding="utf-8")
    options = ["--epochs", 2, "--hidden", "--optimizer", "sgd", "--batch-size", "full"]
    assert run("train", DATA, *options) == 0
    made = folder / "runs"
    for name, file, content in [
        ("broken-2", "summary.json", '{"task": '),
        ("broken-10", "summary.json", '["a list"]'),
        ("killed", "options.json", '{"data": "iris", "epochs": 40}'),
    ]:
        (made / name).mkdir()
        (made / name / file).write_text(content)
    (made / "imported").mkdir()
    (made / "imported" / "model.safetensors").write_bytes(b"")
    (made / "killed" / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    return folder


def test_names_are_text_in_the_report_and_in_the_list_of_runs(folder, capsys):
    """One test, as the run takes seconds: the report, then ``jaxbp runs``."""
    check_report(folder)
    check_list(folder, capsys)


def check_report(folder):
    html = (folder / "runs" / f"{DATA.removesuffix('.csv')}-1" / "report.html").read_text("utf-8")
    page = Page(html)
    assert not {"script", "b", "link", "img", "iframe"} & {*page.elements}
    assert page.loads == []
    shown = "".join(page.texts)
    for name in (*KINDS, DATA, NAMES[0], NAMES[1], r"line\nbreak"):
        assert name in shown
    for title in (
        *("Learning curve", "Scores", "Confusion on test rows", "Importance of columns"),
        *("Gradient check", "Health of layers", "How to predict", "How to repeat"),
    ):
        assert title in page.texts
    assert "--batch-size full" in shown  # of the command that repeats it
    assert page.elements.count("svg") == 2
    matrix = re.search(r'class="matrix".*?</table>', html, re.S)[0]
    summary = json.loads((folder / "runs" / f"{DATA[:-4]}-1" / "summary.json").read_text("utf-8"))
    cells = [int(cell) for cell in re.findall(r"<td[^>]*>(\d+)</td>", matrix)]
    assert cells == np.ravel(summary["test_confusion"]).tolist()
    assert "<bdi>שלום עולם</bdi>" in html


def check_list(folder, capsys):
    capsys.readouterr()
    (folder / "runs" / "a-link").symlink_to(folder / "runs" / "killed")
    assert run("runs") == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["broken-2", "broken-10", "imported", "killed", "we<ird>"]
    assert [line.split()[0] for line in lines[1:]] == names
    states = "unreadable", "unreadable", "network alone", "unfinished"
    for line, state in zip(lines[1:5], states, strict=True):
        assert line.endswith(state)
    assert run("runs", "runs", "--sort", "score", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    summary = json.loads((folder / "runs" / f"{DATA[:-4]}-1" / "summary.json").read_text("utf-8"))
    assert found[0]["validation"] == summary["validation_accuracy"]
    assert found[0]["task"] == "3 classes"
    assert found[0]["rows"] == sum(summary["rows"].values())
    assert found[0]["target"] == summary["target"]
    assert found[-1] | {"data": "iris", "epochs": 1, "state": "unfinished"} == found[-1]
    assert run("runs", "--html", "all.html") == 0
    page = Page((folder / "all.html").read_text("utf-8"))
    assert page.links == ["runs/we%3Cird%3E%20%26%20%22name%22-1/report.html"]
    assert "script" not in page.elements
    assert DATA in "".join(page.texts)
    assert page.elements.count("svg") == 1
    capsys.readouterr()
    for arguments, message in [
        (["runs", "--html", "all.html"], "--html: all.html exists, and nothing is overwritten"),
        (["runs", "--html", "all.txt"], "--html: got all.txt, expected a name in .html, .htm"),
        (["runs", "nowhere"], "FOLDER: nowhere is not a directory"),
    ]:
        assert run(*arguments) == 2
        assert capsys.readouterr().err == f"jaxbp: {message}\n"


@pytest.mark.parametrize(
    ("head", "outputs"),
    [("sigmoid_logistic", 1), ("softmax_cross_entropy", 2), ("linear_half_squared_error", 2)],
)
def test_the_lines_of_a_report_predict_as_the_command_does(head, outputs):
    model = jaxbp.MLP((2, outputs), (), heads.BY_NAME[head])
    params, x = jaxbp.init(jax.random.key(0), model), np.eye(2, dtype=np.float32) - 0.3
    preparation = plain_preparation(model)
    if preparation.labels is None:
        preparation = preparation._replace(target_mean=np.array([5.0, 7.0]))
    names = {"jaxbp": jaxbp, "model": model, "params": params, "preparation": preparation, "x": x}
    exec("\n".join(report.predicting(preparation, outputs)), names)
    _, rows = predict.tabulate(Checkpoint(model, params, preparation), x)
    if preparation.labels is None:
        np.testing.assert_allclose(names["prediction"], np.array(rows, float), rtol=1e-6)
    else:
        assert names["labels"] == [row[0] for row in rows]


def test_texts_of_a_page():
    assert pages.text("a < b\u202e\n") == r"a &lt; b\u202e\n"
    labels = [f"{{{number}}}" for number in range(36)]
    many = Page(pages.matrix(np.eye(36, dtype=int), labels, "a matrix"))
    assert many.elements.count("td") == 36 * 36 + 1
    assert {"{0}", "{35}", "1"} <= {*many.texts}
    names = ["a", "b"]
    drawn = pictures.residuals(names, np.ones((3, 2)), np.zeros((3, 2)))
    assert "prediction" in "".join(Page(pages.picture(drawn, "residuals <")).texts)
    health = Health(*np.ones((len(Health._fields), 2, 3)))
    drawn = Page(pages.picture(pictures.health_of_layers(health), "health"))
    assert "layer 3" in "".join(drawn.texts)


def one(name, metric, score, seconds):
    when = f"2026-01-0{len(name)}T00:00:00+00:00"
    names = {"data": f"{name}.csv", "task": "3 classes", "network": "4-16-3 relu", "head": "a"}
    scores = {"metric": metric, "validation": score, "test": score}
    return runs.Run(name, "finished", **names, **scores, seconds=seconds, finished=when)


FOUND = [
    one("r-10", "r2", 0.9, 1.0),
    one("r-9", "accuracy", 0.5, 3.0),
    one("lost", "accuracy", None, None),
    one("best", "accuracy", 0.8, 2.0),
]


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("name", ["best", "lost", "r-9", "r-10"]),
        ("score", ["best", "r-9", "r-10", "lost"]),
        ("time", ["r-10", "best", "r-9", "lost"]),
        ("date", ["best", "lost", "r-10", "r-9"]),
    ],
)
def test_runs_are_sorted_by_one_kind_of_score_at_a_time(by, names):
    assert [each.name for each in runs.ordered(FOUND, by)] == names


def test_scores_of_other_targets_rows_and_weights_are_told_of():
    first = replace(FOUND[3], target="churn", rows=900)
    others = [replace(first, target="roaming"), replace(first, rows=1800), first]
    console = Console(width=200, force_terminal=True, color_system=None, record=True)
    for found, told in [
        ([first, first, FOUND[0]], None),
        ([first, others[0]], "best.csv: the runs differ in target, which no score compares"),
        ([first, *others], "best.csv: the runs differ in target and rows, which no score compares"),
        ([first, replace(first, weights="w")], "best.csv: the runs differ in weights, which"),
    ]:
        runs._show(found, runs.Runs(), console)
        shown = console.export_text()
        assert "3 classes of churn" in shown
        assert ("differ" in shown) == (told is not None)
        assert told is None or told in shown
    assert runs._losses_of(first) == "best.csv, churn, 900 rows, a"


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_the_table_of_runs_fits_a_terminal(width, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "run_folders", lambda _: {each.name: each for each in FOUND})
    monkeypatch.setattr(runs, "read", lambda each: each)
    console = Console(width=width, force_terminal=True, color_system=None)
    assert runs.run(runs.Runs(tmp_path, "score"), console) == 0
    table, *told = capsys.readouterr().out.split("\n\n")
    assert max(map(len, table.splitlines())) <= width
    assert "accuracy and R² are no scores of one kind" in told[-1]
    assert ("too narrow for date" in told[-1]) == (width < 100)
