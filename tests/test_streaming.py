"""Streaming from shards: statistics, parts, orders, the command, and what is refused."""

import json
from itertools import chain

import numpy as np
import pytest

pytest.importorskip("grain")
pytest.importorskip("polars")
pytest.importorskip("tyro")
import jax
import polars

import jaxbp
from jaxbp import cli
from jaxbp.cli import options
from jaxbp.cli.files import METRICS, NETWORK
from jaxbp.cli.options import with_stream
from jaxbp.cli.train import Train
from jaxbp.data import streaming
from jaxbp.data.errors import DataError
from jaxbp.data.first_pass import Moments, Part
from jaxbp.data.streaming import Epochs, load_stream

slow = pytest.mark.slow


def rows_of(count, seed=0):
    """Inputs far from 0, of which one is constant, and a class; the first input tells the row."""
    rng = np.random.default_rng(seed)
    x = rng.normal(1e3, 2, (count, 4))
    x[:, 0], x[:, 1] = np.arange(count), 7
    return x.astype(np.float32), (x[:, 2] > 1e3).astype(int)


def written(folder, kind, x, y, cuts=(0, 500, 501, 1300)):
    """A folder of shards of a kind."""
    folder.mkdir()
    for start, end in zip(cuts, (*cuts[1:], len(x)), strict=True):
        part, target, file = x[start:end], y[start:end], folder / f"{start:05}{kind}"
        if kind == ".npy":
            np.save(file, np.column_stack([part, target]))
        elif kind == ".npz":
            np.savez(file, x=part, y=target, w=target)
        else:
            names = {f"c{place}": column for place, column in enumerate(part.T)}
            names |= {"class": np.where(target, "yes", "no"), "__index_level_0__": target}
            polars.DataFrame(names).write_parquet(file)
    return folder


def loaded(source, **options):
    return load_stream(
        source, **{"target": None, "task": None, "seed": 3, "standardize_target": True} | options
    )


def batches(stream, epoch):
    stream.set_epoch(epoch)
    return list(stream)


def numbers(stream, parts):
    """The numbers of rows, by their first input."""
    preparation = stream.source.dataset.preparation
    x = np.concatenate([batch.x[:, 0] for batch in parts])
    return np.rint(x * preparation.scale[0] + preparation.mean[0]).astype(int)


@pytest.mark.parametrize("kind", [".npy", ".npz", ".parquet"])
def test_shards_are_read_split_and_standardised(kind, tmp_path):
    """Every row is in one part; statistics are those of all training rows at once."""
    x, y = rows_of(2000)
    source = loaded(written(tmp_path / "shards", kind, x, y))
    assert source.rows == {"train": 1353, "validation": 263, "test": 384}
    notes = {
        ".npy": (),
        ".npz": ("of its arrays, 'x' and 'y' are read, and not 'w'",),
        ".parquet": ("'__index_level_0__', the index of pandas, is left out",),
    }
    assert source.dataset.decisions.notes == notes[kind]
    stream = Epochs(source, 32, 10**6, lambda batch: batch)
    parts = batches(stream, 0)
    trained = numbers(stream, parts)
    held = [numbers(stream, [getattr(source.dataset, part)]) for part in ("validation", "test")]
    assert sorted(np.concatenate([trained, *held])) == list(range(2000))
    rows = x[np.sort(trained)].astype(float)
    preparation = source.dataset.preparation
    np.testing.assert_allclose(preparation.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(preparation.scale[[0, 2, 3]], rows.std(0)[[0, 2, 3]], rtol=1e-12)
    assert preparation.scale[1] == 1
    assert preparation.labels == (("no", "yes") if kind == ".parquet" else ("0", "1"))
    assert {len(batch.x) for batch in parts[:-1]} == {32}
    np.testing.assert_array_equal(np.concatenate([each.target for each in parts]), y[trained])


def test_an_order_is_a_function_of_the_epoch(tmp_path, monkeypatch):
    """Epochs that are a part of a pass take up where the one before ended; the next pass has
    another order, and all have it in the middle of a run as at its begin."""
    monkeypatch.setattr(streaming, "_CHEAP", 4)
    source = loaded(written(tmp_path / "shards", ".npy", *rows_of(2000)))
    stream = Epochs(source, 16, 300, lambda batch: batch)
    whole = stream.windows * round(1 / stream.passes)
    assert stream.windows == 1
    assert len(stream) == pytest.approx(1353 / whole / 16, abs=1)
    first, second = ([batches(stream, whole * a + b) for b in range(whole)] for a in range(2))
    orders = [numbers(stream, chain(*each)) for each in (first, second)]
    np.testing.assert_array_equal(*map(np.sort, orders))
    assert len(np.unique(orders[0])) == 1353
    assert not np.array_equal(*orders)
    assert abs(np.corrcoef(np.arange(1353), orders[0])[0, 1]) < 0.1  # mixed over the whole source
    again = Epochs(source, 16, 300, lambda batch: batch)
    np.testing.assert_array_equal(numbers(again, batches(again, 1)), numbers(stream, first[1]))


@pytest.mark.parametrize("kind", [".npy", ".parquet"])
def test_several_processes_read_their_own_rows_of_each_batch(kind, tmp_path, monkeypatch):
    """Together those of one process; a last batch of two rows leaves none for one of three."""
    monkeypatch.setattr(streaming, "_WINDOW_BYTES", 20 * 200)  # several windows, batches across
    source = loaded(written(tmp_path / "shards", kind, *rows_of(2000)))
    stream = Epochs(source, 7, 10**6, lambda batch: batch)
    alone = batches(stream, 2)
    assert len(alone[-1].x) == 2
    parts, read = [], []
    real = np.load

    def counted(file, **options):
        class Table:
            def __getitem__(self, rows):
                read.append(len(rows))
                return real(file, **options)[rows]

        return Table()

    monkeypatch.setattr(np, "load", counted)
    for number in range(3):
        monkeypatch.setattr(streaming, "place_among", lambda mesh, number=number: (number, 3))
        parts.append(batches(stream, 2))
        assert kind != ".npy" or sum(read) == sum(len(batch.x) for batch in parts[-1])
        read.clear()
    assert {len(each) for each in parts} == {len(alone)}
    assert [len(each[-1].x) for each in parts] == [1, 1, 0]
    for whole, *some in zip(alone, *parts, strict=True):
        together = np.concatenate([numbers(stream, [batch]) for batch in some])
        np.testing.assert_array_equal(np.sort(together), np.sort(numbers(stream, [whole])))


def test_moments_of_blocks_are_those_of_all_rows():
    """Far from 0, where a sum of squares has no digits left; a constant column has none."""
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.normal(1e8, 1, 999), np.full(999, 0.1)])
    moments = Moments(2)
    for block in np.array_split(values, [0, 1, 500]):
        moments.add(block)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.scale, [values[:, 0].std(), 1], rtol=1e-7)


def test_hashes_of_row_numbers_are_even():
    part = Part(0, 0.2, 0.35, 0.9)
    hashes = part.hashes(np.arange(10**5))
    counts, _ = np.histogram(hashes, 20, (0, 1))
    assert abs(counts - 5000).max() < 300  # 4.4 standard deviations
    other = part._replace(seed=1).hashes(np.arange(10**5))
    assert abs(np.corrcoef(hashes, other)[0, 1]) < 0.02


def test_a_target_of_numbers_is_standardised(tmp_path):
    x, _ = rows_of(2000)
    folder = tmp_path / "shards"
    folder.mkdir()
    np.save(folder / "a.npy", x)
    source = loaded(folder, target="3", task="regression")
    targets = np.concatenate([each.target for each in Epochs(source, 64, 10**6, lambda b: b)])
    assert targets.shape == (1353, 1)
    assert targets.mean() == pytest.approx(0, abs=1e-5)
    assert targets.std() == pytest.approx(1, abs=1e-5)
    assert source.dataset.preparation.features == ("column 0", "column 1", "column 2")


def frame(**columns):
    return lambda folder: polars.DataFrame(columns).write_parquet(folder / "a.parquet")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda folder: None, {}, "got none of them, expected a file, or a folder of files"),
        (
            lambda folder: [np.save(folder / "a.npy", np.ones((3, 2))), np.savez(folder / "b.npz")],
            {},
            r"got .npy, .npz, expected a file",
        ),
        (
            lambda folder: [np.save(folder / f"{n}.npy", np.ones((3, n))) for n in (2, 3)],
            {},
            r"3.npy: 3 columns unlike the 2 of .*2.npy \(column 2\)",
        ),
        (
            lambda folder: np.save(folder / "a.npy", np.where(np.eye(9) > 0, np.nan, 1)),
            {},
            r"a.npy, row 0, column 'column 0': nan is not finite",
        ),
        (
            lambda folder: np.save(folder / "a.npy", np.full((9, 9), np.inf, np.float16)),
            {},
            r"a.npy, row 0, column 'column 0': inf is not finite",
        ),
        (
            frame(a=[1, 2**53 + 1], b=[1, 2]),
            {},
            r"a.parquet, row 1, column 'a': 9007199254740993 is an integer beyond 2⁵³ that",
        ),
        (
            lambda folder: np.savez(folder / "a.npz", x=np.eye(4), y=np.eye(4)),
            {},
            r"a.npz: y has rows of shape \(4,\), expected a number or a class in each",
        ),
        (frame(a=["x", "y"], b=[1, 2]), {}, r"column 'a' is String, and a stream takes numbers"),
        (frame(a=[1.0, None], b=[1, 2]), {}, r"a.parquet, row 1, column 'a': missing; a stream"),
        (frame(a=[1.0, 2], b=[1, 2]), {"target": "c"}, r"no column 'c'"),
        (frame(a=[1.0, 2], b=[1, 2]), {"drop": ("b",)}, r"drop: one of the columns is the target"),
        (frame(a=[1.0, 2], b=[1, 2], c=[0, 1]), {"target": "b,c"}, r"several target columns are"),
        (
            lambda folder: np.savez(folder / "a.npz", x=np.ones((3, 2)), y=np.ones(2)),
            {},
            r"x has 3 rows, and y 2",
        ),
        (lambda folder: np.savez(folder / "a.npz", x=np.ones((3, 2))), {}, r"arrays x .* and y"),
        (
            lambda folder: [
                np.savez(folder / f"{n}.npz", x=np.ones((4, n, 6 // n)), y=np.ones(4))
                for n in (2, 3)
            ],
            {},
            r"3.npz: x has rows of shape \(3, 2\), unlike the \(2, 3\) of .*2.npz",
        ),
    ],
)
def test_what_cannot_be_streamed_is_named(make, options, message, tmp_path):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        loaded(tmp_path, **options)


def train(*arguments, status=0):
    assert cli.main(["train", *map(str, arguments), "--hidden", "4"]) == status


@slow
def test_a_streamed_run_goes_on_in_the_middle_of_a_pass(tmp_path, monkeypatch, capsys):
    """By the command, to the last bit; its network predicts new files."""
    monkeypatch.setattr(streaming, "_CHEAP", 4)
    x, y = rows_of(2000)
    folder = written(tmp_path / "shards", ".npy", x, y)
    given = [folder, "--epoch-rows", 300, "--schedule", "constant", "--label-smoothing", 0.1]
    train(*given, "--epochs", 7, "--output", tmp_path / "whole")
    assert " training rows are read from the disk, about " in capsys.readouterr().out
    train(*given, "--epochs", 3, "--output", tmp_path / "parts")
    assert cli.main(["train", "--resume", str(tmp_path / "parts"), "--epochs", "7"]) == 0
    lines = []
    for run in ("whole", "parts"):
        of_run = (tmp_path / run / METRICS).read_text().splitlines()
        lines.append([json.loads(line) | {"seconds": 0} for line in of_run])
    assert lines[0] == lines[1]
    networks = [jaxbp.load(tmp_path / run / NETWORK).params for run in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *networks)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert sum(summary["rows"].values()) == 2000
    assert summary["streamed"]["epoch_rows"] == pytest.approx(300, abs=50)
    np.save(tmp_path / "new.npy", x[:5])
    assert cli.main(["predict", str(tmp_path / "whole"), str(tmp_path / "new.npy")]) == 0
    (folder / "00501.npy").unlink()
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(tmp_path / "parts"), "--epochs", "9"]) == 2
    assert "is of other data: validation was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--optimizer", "lbfgs"],
            "--optimizer lbfgs: got it for a stream of rows (--stream), and",
        ),
        (["--batch-size", "full"], "--batch-size full: got it for a stream of rows"),
        (["--diagnostics"], "--diagnostics: got it for a stream of rows"),
        (["--class-weight", "balanced"], "--class-weight: got it for a stream of rows"),
        (["--epoch-rows", "0"], "--epoch-rows: got 0, expected at least 1"),
    ],
)
def test_what_a_stream_of_rows_does_not_go_with_is_refused(arguments, message, tmp_path, capsys):
    train(tmp_path, *arguments, status=2)
    assert message in capsys.readouterr().err


def test_a_file_that_is_larger_than_the_memory_is_streamed(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.ones((20, 3)))
    given = Train(str(tmp_path / "a.npy"))
    assert not with_stream(given).stream
    monkeypatch.setattr(options, "host_memory", lambda: 500.0)
    assert with_stream(given).stream
    assert not with_stream(Train("digits")).stream


def test_epoch_rows_are_for_streams_alone(capsys):
    train("iris", "--epoch-rows", 10, status=2)
    assert "--epoch-rows is for rows that are streamed (--stream)" in capsys.readouterr().err
    train("iris", "--stream", status=2)
    assert "iris: no such file or folder" in capsys.readouterr().err
