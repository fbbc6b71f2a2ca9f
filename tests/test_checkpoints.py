"""Runs on disk: what was killed goes on as if it had not been, and nothing else is gone on with."""

import os
import resource
import shutil
import signal
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

pytest.importorskip("orbax.checkpoint")

import jaxbp
from benchmarks.problems import random_batch
from jaxbp import activations, heads
from jaxbp.training.checkpoints import alone_in

MODEL = jaxbp.MLP((3, 300, 2), activations.tanh, heads.linear_squared_error, l2=0.01)
BATCH = random_batch(MODEL, 22, 0, dtype=np.float32)
KEY = jax.random.key(4)
ADAM = optax.adam(0.01)
OTHER = BATCH._replace(target=3 * BATCH.target)  # by which the second epoch is the best
fit = partial(jaxbp.fit, MODEL, BATCH, batch_size=5, optimizer=ADAM, validation=OTHER)


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def numbers(folder):
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole():
    """Parameters and history of six epochs in one go."""
    return fit(epochs=6, key=KEY, keep_best=True)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder with the checkpoints of three epochs."""
    folder = tmp_path_factory.mktemp("runs") / "three"
    fit(epochs=3, key=KEY, checkpoint=folder, checkpoint_every=1, checkpoint_keep=2)
    return folder


@pytest.fixture
def folder(three, tmp_path):
    """A copy of it, to go on with."""
    return Path(shutil.copytree(three, tmp_path / "checkpoints"))


def test_a_run_goes_on_from_the_disk(whole, folder):
    """The history is that of all epochs, and the best epoch was one before; twice in a row."""
    assert whole[1].validation_loss.argmin() == 1
    assert numbers(folder) == [2, 3]
    for epochs in (4, 6):
        params, history = fit(epochs=epochs, resume=folder, checkpoint=folder, keep_best=True)
    equal((params, history), whole)
    assert [each.dtype for each in history[:3]] == [each.dtype for each in whole[1][:3]]
    assert numbers(folder) == [3, 4, 6]


@pytest.mark.slow
def test_early_stopping_goes_on_from_the_disk(tmp_path):
    ended = []
    for parts in ([9], [4, 9, 9, 12]):  # the third finds that it has ended
        for epochs in parts:
            stopping = jaxbp.EarlyStopping(patience=3)
            params, history = fit(
                epochs=epochs,
                key=KEY,
                checkpoint=tmp_path / str(len(parts)),
                resume=tmp_path / str(len(parts)),  # where there is none yet, a new run begins
                on_epoch=stopping,
                keep_best=True,
            )
        ended.append((params, history, stopping.best.number, stopping.best.params))
    equal(*ended)
    assert ended[0][2] == 2
    assert len(ended[0][1].training_loss) == 5


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.add_noise(0.1, 0.5, 3)])
def test_every_part_of_a_run_goes_on(optimizer, tmp_path):
    """A random gradient, diagnostics, float64, a state with a key or without any numbers."""
    options = {
        "optimizer": optax.chain(optimizer, optax.sgd(0.1)),
        "gradient": jaxbp.with_dropout(0.3)(jaxbp.backprop),
        "diagnostics": True,
        "compute_dtype": np.float32,
    }
    with jax.enable_x64(True):
        batch = random_batch(MODEL, 22, 0, dtype=np.float64)
        fit = partial(jaxbp.fit, MODEL, batch, batch_size=None, **options)
        whole = fit(epochs=5, key=KEY)
        fit(epochs=3, key=KEY, checkpoint=tmp_path, checkpoint_every=2)
        assert numbers(tmp_path) == [2, 3]
        again = fit(epochs=5, resume=tmp_path)
    equal(again[0], whole[0])
    equal(again[1]._replace(run=None), whole[1]._replace(run=None))
    with pytest.raises(
        ValueError, match=r"holds params\[0\].* in float64, and jax_enable_x64 is off"
    ):
        fit(epochs=5, resume=tmp_path)


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def damaged(file, how):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if how == "changed" else content[: len(content) // 2])


def test_what_is_damaged_is_passed_over(whole, folder, capfd):
    """A number that is changed in the largest file, which Orbax does not notice."""
    damaged(max((folder / "3").rglob("d/*"), key=lambda file: file.stat().st_size), "changed")
    with pytest.warns(UserWarning, match=r"3 is damaged, and passed over: it has been changed"):
        equal(fit(epochs=6, resume=folder, checkpoint=folder, keep_best=True), whole)
    assert numbers(folder) == [2, 6]
    for step in ("2", "6"):
        for file in files_in(folder / step):
            damaged(file, "truncated")
    with (
        pytest.warns(UserWarning, match="is damaged, and passed over"),
        pytest.raises(ValueError, match="checkpoints holds no checkpoint that is whole"),
    ):
        fit(epochs=7, resume=folder)
    assert capfd.readouterr().err == ""  # neither Orbax's log nor TensorStore's


@pytest.mark.slow
@pytest.mark.parametrize("how", ["changed", "truncated", "removed"])
def test_any_file_may_be_damaged(how, whole, three, tmp_path):
    """It is noticed where it matters, and the run is the same in any case."""
    noticed = set()
    for file in [path.relative_to(three) for path in files_in(three / "3")]:
        folder = Path(shutil.copytree(three, tmp_path / "copy"))
        if how == "removed":
            (folder / file).unlink()
        else:
            damaged(folder / file, how)
        with warnings.catch_warnings(action="always", record=True) as told:
            equal(fit(epochs=6, resume=folder, keep_best=True), whole)
        if told:
            noticed.add(file.name)
        shutil.rmtree(folder)
    assert {"metadata", "manifest.ocdbt"} <= noticed


OTHERS = [
    ({"optimizer": optax.adam(0.02)}, r"the optimizer's numbers was -0\.01, and is -0\.02"),
    ({"optimizer": optax.sgd(0.1)}, "its optimizer had the state .*ScaleByAdam.*, and this one"),
    ({"optimizer": optax.nadam(0.01)}, "optimizer"),
    ({"key": jax.random.key(5)}, "key: got another one than the run's"),
    ({"batch_size": 4}, "of another run: batch_size was 5, and is 4"),
    ({"validation": None}, "validation was 22 rows with the digest .*, and is none"),
    ({"gradient": jaxbp.autodiff}, "gradient's program is another one"),
    ({"epochs": 2}, "epochs: got 2, and the run is complete: it has done 3"),
    ({"params": ()}, "params: got params beside resume"),
]


def test_another_run_is_refused(three):
    for options, message in OTHERS:
        with pytest.raises(ValueError, match=message):
            fit(resume=three, **{"epochs": 6} | options)
    wider = MODEL._replace(sizes=(3, 301, 2))
    other = BATCH._replace(x=BATCH.x + 1)
    for model, batch, message in [
        (wider, BATCH, r"network was MLP\(sizes=\(3, 300, 2\), .*, and is MLP\(sizes=\(3, 301, 2"),
        (MODEL._replace(l2=0.0), BATCH, "l2 was 0.01, and is 0.0"),
        (MODEL._replace(activation=activations.relu), BATCH, "activation=tanh.*activation=relu"),
        (MODEL, other, "data was 22 rows with the digest .*, and is 22 rows with the digest"),
    ]:
        with pytest.raises(ValueError, match=message):
            jaxbp.fit(
                model, batch, batch_size=5, optimizer=ADAM, epochs=6, validation=OTHER, resume=three
            )
    faster = optax.adam(0.02)
    _, history = fit(epochs=4, optimizer=faster, resume=jaxbp.load_run(three, faster))
    assert len(history.training_loss) == 1


def test_a_complete_run_is_not_trained(three):
    before = [path.stat().st_mtime_ns for path in files_in(three)]
    params, history = fit(epochs=3, checkpoint=three, resume=three)
    assert len(history.training_loss) == 3
    equal((params, history.run), (history.run.params, jaxbp.load_run(three, ADAM)))
    assert [path.stat().st_mtime_ns for path in files_in(three)] == before


def test_other_versions_are_told(three, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "0.1")
    with pytest.warns(UserWarning, match=r"was written by jax .*, optax .*, and this is jax 0.1,"):
        fit(epochs=4, resume=three)


def test_a_folder_that_holds_anything_else_is_refused(three, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for folder, error, message in [
        (three, FileExistsError, "holds a run of 3 epochs, and nothing is overwritten; resume="),
        (tmp_path, FileExistsError, "holds mine.txt, which is no checkpoint"),
        (tmp_path / "mine.txt", NotADirectoryError, "mine.txt is not a folder"),
        (tmp_path / "mine.txt" / "in", NotADirectoryError, "mine.txt"),
    ]:
        with pytest.raises(error, match=message):
            fit(epochs=4, key=KEY, checkpoint=folder)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert numbers(three) == [2, 3]
    for options, message in [
        ({"checkpoint_every": 0}, "checkpoint_every: got 0, expected a positive number of epochs"),
        ({"checkpoint_every": timedelta(0)}, "checkpoint_every: got datetime.timedelta"),
        ({"checkpoint_keep": 0}, "checkpoint_keep: got 0, expected at least 1"),
        ({"keep_best": True, "validation": None}, "keep_best: got True, and no validation data"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(**{"epochs": 4, "key": KEY, "checkpoint": tmp_path / "new"} | options)
    assert not (tmp_path / "new").exists()


def test_one_process_at_a_time_writes_to_a_folder(folder):
    pytest.importorskip("fcntl")
    with (
        alone_in(folder),
        pytest.raises(BlockingIOError, match=f"in use by another process: '{folder}'"),
    ):
        fit(epochs=6, resume=folder, checkpoint=folder)
    assert numbers(folder) == [2, 3]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that even root cannot fill")
def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(OSError, match="/proc/new"):
        fit(epochs=4, key=KEY, checkpoint="/proc/new/run")


def test_signals_and_errors_leave_the_last_epoch(whole, tmp_path, sigint):
    """With a checkpoint a day; those of SIGTERM are 143, and Ctrl-C's are a TrainingInterrupt."""

    def ended_by(what):
        def on_epoch(epoch):
            if epoch.number == 3:
                what()

        return on_epoch

    for number, what, error in [
        (1, partial(signal.raise_signal, signal.SIGTERM), SystemExit),
        (2, partial(signal.raise_signal, sigint), jaxbp.TrainingInterrupt),
        (3, {}.popitem, KeyError),
    ]:
        folder = tmp_path / str(number)
        day = timedelta(days=1)
        with pytest.raises(error) as ended:
            fit(
                epochs=6,
                key=KEY,
                checkpoint=folder,
                checkpoint_every=day,
                on_epoch=ended_by(what),
            )
        assert numbers(folder) == [2]
        assert error is not SystemExit or ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    equal(fit(epochs=6, resume=folder, keep_best=True), whole)


def test_a_full_disk_leaves_what_there_is(whole, folder, capfd):
    """By the largest file that the process may write."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(epoch):
        if epoch.number == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, usual[1]))

    try:
        with pytest.raises(OSError, match=f"{os.strerror(27)}: '{folder}") as full:
            fit(epochs=9, resume=folder, checkpoint=folder, checkpoint_every=1, on_epoch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert len(full.value.history.training_loss) in {5, 6}
    assert capfd.readouterr().err == ""
    equal(fit(epochs=6, resume=folder, checkpoint=folder, keep_best=True), whole)
    assert numbers(folder)[-1] == 6


def test_it_needs_orbax(monkeypatch, tmp_path):
    monkeypatch.setattr("jaxbp.training.checkpoints.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"orbax-checkpoint: pip install 'jaxbp\[checkpoint\]'"):
        fit(epochs=4, key=KEY, checkpoint=tmp_path)
