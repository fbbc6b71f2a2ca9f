"""``jaxbp train --resume``: a run that was ended, in whatever way, is the run that it would be."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

for module in ("tyro", "rich", "matplotlib", "safetensors", "sklearn", "orbax.checkpoint"):
    pytest.importorskip(module)

import jax

import jaxbp
from jaxbp import cli
from jaxbp.cli import files
from jaxbp.training.checkpoints import alone_in

BEGUN = ["--hidden", "--optimizer", "momentum", "--batch-size", "full"]  # compiles fast
BEGUN += ["--schedule", "constant", "--checkpoint-every", "1"]
slow = pytest.mark.slow


def run(*arguments):
    return cli.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of four epochs in one go, and one of two."""
    place = tmp_path_factory.mktemp("runs")
    for epochs in (4, 2):
        assert (
            run("train", "iris", *BEGUN, "--epochs", epochs, "--output", place / str(epochs)) == 0
        )
    return place


@pytest.fixture
def two(runs, tmp_path):
    """A copy of the run of two epochs."""
    return Path(shutil.copytree(runs / "2", tmp_path / "run"))


@pytest.fixture
def four(runs, tmp_path):
    """A copy of the run of four epochs."""
    return Path(shutil.copytree(runs / "4", tmp_path / "run"))


def record(folder):
    """All that a run leaves, without what it took and when."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    words = ("seconds", "samples", "command", "options", "finished")
    summary = {name: each for name, each in summary.items() if not any(w in name for w in words)}
    return [line | {"seconds": 0} for line in lines], summary


def assert_equal(one, other):
    loaded = [jaxbp.load(folder).params for folder in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *loaded)
    assert record(one) == record(other)
    of_each = [{path.name for path in folder.iterdir()} for folder in (one, other)]
    assert {*files.RUN} - {*files.OF_TEST_ROWS} <= of_each[0] == of_each[1] <= {*files.RUN}


@pytest.mark.slow
def test_a_complete_run_says_so_and_goes_on(runs, two, capsys):
    assert run("train", "--resume", two) == 0
    assert (
        "run is complete: it has trained 2 epochs, and a larger --epochs" in capsys.readouterr().out
    )
    assert run("train", "--resume", two, "--epochs", 4) == 0
    assert "going on after epoch 2 of 4\n" in capsys.readouterr().out
    assert_equal(two, runs / "4")
    lines = (two / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    times = json.loads((two / "summary.json").read_text())
    assert times["seconds_before"] == pytest.approx(seconds[1], abs=1e-4)
    assert times["seconds"] >= seconds[-1] - 1e-3
    (two / files.REPORT).unlink()
    capsys.readouterr()
    assert run("train", "--resume", two) == 0
    (told,) = re.findall(r"(?m)^time .*", capsys.readouterr().out)
    assert re.search(r"training, after \S+ s before", told)
    assert "samples" not in told


def test_a_killed_run_goes_on(runs, four, capsys):
    """After a line of an epoch whose checkpoint is damaged, and half a line and a checkpoint of
    another; then while its results were written."""
    for name in files.RESULTS:
        (four / name).unlink(missing_ok=True)
    shutil.rmtree(four / "checkpoints" / "4" / "record")
    (four / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir()
    with (four / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"epoch": 5, "trai')
    assert run("train", "--resume", four) == 0
    out = capsys.readouterr().out
    assert "checkpoints/4 is damaged, and passed over" in out
    assert "going on after epoch 3 of 4\n" in out
    assert_equal(four, runs / "4")
    assert sorted(path.name for path in (four / "checkpoints").iterdir()) == ["3", "4"]
    for name in files.RESULTS:
        (four / name).unlink(missing_ok=True)
    assert run("train", "--resume", four) == 0
    assert_equal(four, runs / "4")


@slow
def test_without_a_checkpoint_it_begins_anew(runs, two, capsys):
    for name in (*files.RESULTS, "metrics.jsonl"):
        (two / name).unlink(missing_ok=True)
    shutil.rmtree(two / "checkpoints")
    assert run("train", "--resume", two, "--epochs", 4) == 0
    assert "run has no checkpoint yet: it begins anew" in capsys.readouterr().out
    assert_equal(two, runs / "4")


def test_a_run_goes_on_or_is_replaced(two, capsys):
    assert run("train", "--resume", two, "--overwrite") == 2
    assert "--overwrite: got it beside --resume" in capsys.readouterr().err
    begun = json.loads((two / files.OPTIONS).read_text())
    (two / files.OPTIONS).write_text(json.dumps(begun | {"overwrite": True}))
    assert run("train", "--resume", two) == 0  # as it was begun by
    assert "is complete" in capsys.readouterr().out
    (two / files.NETWORK).rename(two / f"{files.NETWORK}{files.BEFORE}")
    assert run("predict", two, "iris") == 2
    assert f"{files.NETWORK}.before is the other's network" in capsys.readouterr().err


def test_what_contradicts_the_run_is_refused(two, capsys):
    before = {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
    for options, message in [
        (["--seed", 1], "--seed: got 1, and the run in {} has 0; a run goes on as it was begun"),
        (["--hidden", 4, 4], "--hidden: got 4 4, and the run in {} has none; a run goes on"),
        (["--epochs", 1], "--epochs: got 1, and the run in {} has 2; they can only be raised"),
        (["--output", "other"], "--output: got other, and the run in {} has {}; a run goes on"),
        (
            ["--epochs", 4, "--checkpoint-every", 0],
            "--checkpoint-every: got 0, expected at least 1",
        ),
    ]:
        assert run("train", "--resume", two, *options) == 2
        assert message.replace("{}", str(two)) in capsys.readouterr().err
    assert run("train", "wine", f"--resume={two}") == 2
    assert f"DATA: got wine, and the run in {two} has iris" in capsys.readouterr().err
    assert run("train", "--resume", two.parent) == 2
    assert "holds no run to go on with (options.json: No such file" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
    lines = (two / "metrics.jsonl").read_text().splitlines(keepends=True)
    (two / "metrics.jsonl").write_text(lines[0])
    assert run("train", "--resume", two, "--epochs", 4) == 2
    assert "metrics.jsonl has not the lines of the 2 epochs" in capsys.readouterr().err
    with alone_in(two):
        assert run("train", "--resume", two, "--epochs", 4) == 2
    assert capsys.readouterr().err == f"jaxbp: {two}: in use by another process\n"
    (two / "options.json").write_text('{"seed": 1, "colour": "red"}')
    assert run("train", "--resume", two) == 2
    assert "no run to go on with (options.json: KeyError('colour'))" in capsys.readouterr().err


@slow
def test_other_data_are_refused(tmp_path, capsys):
    rng = np.random.default_rng(0)
    table = tmp_path / "table.csv"
    rows = rng.normal(size=(60, 3))
    np.savetxt(table, rows, delimiter=",", header="a,b,y", comments="")
    assert run("train", table, *BEGUN, "--epochs", 2, "--output", tmp_path / "run") == 0
    rows[7, 1] += 0.1
    np.savetxt(table, rows, delimiter=",", header="a,b,y", comments="")
    capsys.readouterr()
    options = (tmp_path / "run" / "options.json").read_text()
    assert run("train", "--resume", tmp_path / "run", "--epochs", 4) == 2
    err = capsys.readouterr().err
    assert "run is of other data: data was 39 rows with the digest" in err
    assert err.count("\n") == 1
    assert (tmp_path / "run" / "options.json").read_text() == options
    np.savetxt(table, np.c_[rows, rows[:, 0]], delimiter=",", header="a,b,c,y", comments="")
    assert run("train", "--resume", tmp_path / "run", "--epochs", 4) == 2
    said = "run is of other data: they had 2 inputs and 1 output, and now 3 inputs and 1 output"
    assert said in capsys.readouterr().err


@slow
def test_early_stopping_and_schedules_go_on(tmp_path, capsys):
    """Killed after each epoch, which leaves the best of all; a raised schedule is told."""
    begun = ["diabetes", "--hidden", 8, "--patience", 3, "--checkpoint-every", 1, "--epochs", 60]
    begun += ["--learning-rate", 0.05]
    assert run("train", *begun, "--output", tmp_path / "whole") == 0
    stopped = len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())
    assert stopped < 60
    killed = Path(shutil.copytree(tmp_path / "whole", tmp_path / "killed"))
    for name in files.RESULTS:
        (killed / name).unlink(missing_ok=True)
    shutil.rmtree(killed / "checkpoints" / str(stopped))
    assert run("train", "--resume", killed) == 0
    assert_equal(killed, tmp_path / "whole")
    capsys.readouterr()
    assert run("train", "--resume", killed) == 0
    assert f"complete: it stopped early after epoch {stopped}" in capsys.readouterr().out
    assert run("train", "iris", "--hidden", 8, "--epochs", 2, "--output", tmp_path / "run") == 0
    assert run("train", "--resume", tmp_path / "run", "--epochs", 4) == 0
    out = capsys.readouterr().out
    assert "the cosine schedule is now that of 4 epochs: the learning rate goes on at 0.001" in out


@slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_ends_a_run_that_goes_on(number, status, tmp_path, python, sigint):
    run_folder = tmp_path / "run"
    begun = ["train", "iris", *BEGUN, "--epochs", 60]
    training = python("-m", "jaxbp", *begun, "--output", run_folder)
    metrics = run_folder / "metrics.jsonl"
    training.until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    training.process.send_signal(number)
    training.ended(status)
    assert run("train", "--resume", run_folder) == 0
    assert run(*begun, "--output", tmp_path / "whole") == 0
    assert_equal(run_folder, tmp_path / "whole")


@slow
def test_a_full_disk_ends_the_run_with_a_line(tmp_path, capsys, monkeypatch):
    """The scores are printed, and what was there before the disk was full is gone on with."""
    resource = pytest.importorskip("resource")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    fit_plan = cli.train.fit_plan

    def filling(plan, params, on_epoch, *arguments, **options):
        def fill(epoch):
            if epoch.number == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))

        return fit_plan(plan, params, [*on_epoch, fill], *arguments, **options)

    begun = ["train", "iris", *BEGUN, "--epochs", 6]
    try:
        with monkeypatch.context() as patch:
            patch.setattr(cli.train, "fit_plan", filling)
            assert run(*begun, "--output", tmp_path / "run") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    captured = capsys.readouterr()
    assert "validation" in captured.out
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"jaxbp: {tmp_path / 'run'}")
    assert run("train", "--resume", tmp_path / "run") == 0
    assert run(*begun, "--output", tmp_path / "whole") == 0
    assert_equal(tmp_path / "run", tmp_path / "whole")
