"""Reading, splitting and standardising; and every way a file can be wrong, in one line."""

import re

import numpy as np
import pytest

pytest.importorskip("sklearn")

from jaxbp import data
from jaxbp.data import sources
from jaxbp.data.sources import DataError


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path."""

    def write(text, name="table.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
        return path

    return write


def rows(count=30):
    """A CSV of two numeric features and a text target."""
    lines = ["height,width,kind"]
    lines += [f"{i}.5,{i * i % 7},{'ab'[i % 2]}" for i in range(count)]
    return "\n".join(lines) + "\n"


def batches(dataset):
    return dataset.train, dataset.validation, dataset.test


@pytest.mark.parametrize(
    ("name", "features", "classes"),
    [("digits", 64, 10), ("breast_cancer", 30, 2), ("wine", 13, 3), ("iris", 4, 3)],
)
def test_bundled_classification(name, features, classes):
    dataset = data.load(name)
    assert dataset.train.x.shape[1] == len(dataset.preparation.features) == features
    assert len(dataset.preparation.labels) == classes
    for part in batches(dataset):
        assert part.x.dtype == np.float32
        assert part.target.dtype == np.int32
        assert set(part.target) == set(range(classes))


def test_bundled_regression():
    dataset = data.load("diabetes")
    assert dataset.preparation.labels is None
    assert dataset.train.target.shape == (len(dataset.train.x), 1)
    np.testing.assert_allclose(dataset.train.target.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(dataset.train.target.std(), 1, rtol=1e-6)


def test_the_split_loses_no_row_and_depends_on_the_seed_alone():
    parts = [data.load("wine", seed=seed, standardize=False) for seed in (3, 3, 4)]
    everything = np.vstack([part.x for part in batches(parts[0])])
    whole = sources._read_bundled("wine").x
    assert sorted(map(tuple, everything)) == sorted(map(tuple, whole.astype(np.float32)))
    np.testing.assert_array_equal(parts[0].test.x, parts[1].test.x)
    assert not np.array_equal(parts[0].test.x, parts[2].test.x)


def test_the_split_is_stratified():
    dataset = data.load("breast_cancer")
    shares = [part.target.mean() for part in batches(dataset)]
    np.testing.assert_allclose(shares, 357 / 569, atol=0.01)


def test_only_training_rows_are_asked_for_statistics():
    raw, scaled = (data.load("wine", standardize=s) for s in (False, True))
    np.testing.assert_allclose(scaled.preparation.mean, raw.train.x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scaled.preparation.scale, raw.train.x.std(0), rtol=1e-4)
    np.testing.assert_allclose(scaled.train.x.mean(0), 0, atol=1e-5)
    assert abs(scaled.test.x.mean(0)).max() > 1e-3
    again = data.transform(scaled.preparation, raw.test.x)
    np.testing.assert_allclose(again, scaled.test.x, atol=1e-5)


def test_a_constant_column_is_left_alone(write):
    text = "a,b,kind\n" + "".join(f"7,{i},{'xy'[i % 2]}\n" for i in range(20))
    dataset = data.load(write(text))
    assert not dataset.train.x[:, 0].any()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(write, delimiter):
    dataset = data.load(write("\ufeff" + rows().replace(",", delimiter) + "\n\n"))
    assert dataset.name == "table"
    assert dataset.preparation.features == ("height", "width")
    assert dataset.preparation.labels == ("a", "b")
    assert sum(len(part.x) for part in batches(dataset)) == 30


@pytest.mark.parametrize("target", ["kind", 0, -3, "0"])
def test_target_by_name_or_position(write, target):
    text = "kind,height,width\n" + "".join(f"{'ab'[i % 2]},{i},{i % 3}\n" for i in range(20))
    dataset = data.load(write(text), target=target)
    assert dataset.preparation.features == ("height", "width")
    assert dataset.preparation.labels == ("a", "b")


def test_csv_without_a_header(write):
    dataset = data.load(write("".join(f"{i},{i % 4},{i % 2}\n" for i in range(20))))
    assert dataset.preparation.features == ("column 0", "column 1")
    assert sum(len(part.x) for part in batches(dataset)) == 20


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (range(40), None),  # more than 20 different integers
        ([i / 3 for i in range(40)], None),
        ([i % 5 for i in range(40)], ("0", "1", "2", "3", "4")),
        (["yes", "no"] * 20, ("no", "yes")),
        (["1", "x"] * 20, ("1", "x")),
    ],
)
def test_what_the_target_is(write, values, labels):
    text = "a,y\n" + "".join(f"{i},{value}\n" for i, value in enumerate(values))
    assert data.load(write(text)).preparation.labels == labels


def test_the_task_can_be_said(write):
    text = "a,y\n" + "".join(f"{i},{i % 5}\n" for i in range(40))
    assert data.load(write(text), task="regression").preparation.labels is None


def test_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (30, 4, 5), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(30) % 3, other=np.zeros(2))
    dataset = data.load(tmp_path / "images.npz")
    assert dataset.train.x.shape[1] == 20
    assert dataset.preparation.labels == ("0", "1", "2")
    np.savez(tmp_path / "named.npz", x=images, kind=np.array(["b", "a"] * 15))
    assert data.load(tmp_path / "named.npz", target="kind").preparation.labels == ("a", "b")


def test_npz_with_several_quantities(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "two.npz", x=rng.normal(size=(30, 3)), y=rng.normal(5, 2, size=(30, 2)))
    dataset = data.load(tmp_path / "two.npz", standardize_target=False)
    assert dataset.train.target.shape[1] == 2
    assert abs(dataset.train.target.mean() - 5) < 1


BODY = rows()


def test_a_class_of_one_row_needs_a_split_without_stratifying(write):
    dataset = data.load(write(BODY + "1,2,c\n"), stratify=False)
    assert dataset.preparation.labels == ("a", "b", "c")
    assert sum(len(part.x) for part in batches(dataset)) == 31


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table.csv: the file is empty"),
        ("\n\n", "table.csv: the file is empty"),
        ("a,b,c\n", "table.csv: a header and no rows"),
        ("a\n1\n2\n", "table.csv: one column, expected features and a target"),
        (BODY + "1,2\n", "table.csv, row 32: 2 columns, expected 3"),
        (BODY + "1,2,a,4\n", "table.csv, row 32: 4 columns, expected 3"),
        (BODY + "1,,a\n", "table.csv, row 32, column 'width': missing value"),
        (BODY + "NA,2,a\n", "table.csv, row 32, column 'height': missing value"),
        (BODY + "1,2,\n", "table.csv, row 32, column 'kind': missing value"),
        (BODY + "1,wide,a\n", "table.csv, row 32, column 'width': 'wide' where a number belongs"),
        (BODY + "1,inf,a\n", "table.csv, row 32, column 'width': inf is not finite in float32"),
        (BODY.replace(",b", ",a"), "table.csv: every row has the target a, expected two classes"),
        (
            BODY + "1,2,c\n",
            "table.csv: class 'c' has 1 row.*needs 3 of each; use stratify=False to allow it",
        ),
        ("a,a,y\n1,2,3\n", "table.csv: two columns are called 'a'"),
        (BODY + "1,1e308,a\n", "table.csv, row 32, column 'width': 1e308 is not finite in float32"),
        (BODY + '"1\n",x,a\n', "table.csv, row 32, column 'width': 'x' where a number"),
        (BODY + '"1,2,a\n', "not a readable CSV"),
        (BODY + "1," + "x" * 99 + ",a\n", "'x{37}...' where a number belongs"),
    ],
)
def test_a_csv_that_is_wrong(write, text, message):
    with pytest.raises(DataError, match=message) as error:
        data.load(write(text))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_csv(write):
    with pytest.raises(DataError, match="not a readable CSV"):
        data.load(write("größe,art\n1,a\n", encoding="latin-1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "knd"},
            r"no column 'knd'; did you mean 'kind'\? \(the columns are 'height', 'wid",
        ),
        ({"target": 7}, "no column '7' .the columns are"),
        ({"task": "regression"}, r"table\.csv, row 2, column 'kind': 'a' where a number belongs"),
        ({"validation": 0.6, "test": 0.5}, "validation, test: got 0.6 and 0.5"),
        ({"test": 0.01, "validation": 0.01}, "30 rows cannot be split into these shares"),
    ],
)
def test_options_that_do_not_fit(write, options, message):
    with pytest.raises(DataError, match=message):
        data.load(write(rows()), **options)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.arange(3)}, "no array 'x'; it holds y"),
        ({"x": np.ones((3, 2))}, "no array 'y'; it holds x"),
        (
            {"x": np.ones((3, 2)), "y": np.arange(4)},
            r"y is int64 of shape \(4,\), expected text or numbers",
        ),
        ({"x": np.ones(3), "y": np.arange(3)}, r"x is float64 of shape \(3,\), expected rows"),
        ({"x": np.array([["a"], ["b"]]), "y": np.arange(2)}, "x is <U1 of shape"),
        (
            {"x": np.array([[1.0, np.nan]]), "y": np.ones(1)},
            "x, row 0, column 1: nan is not finite",
        ),
        ({"x": np.ones((2, 1)), "y": np.array([1, np.inf])}, "y, row 1: inf is not finite"),
        (
            {"x": np.ones((2, 1)), "y": np.array([{}, []], object)},
            "it holds pickled objects, which are never read",
        ),
    ],
)
def test_an_npz_that_is_wrong(tmp_path, arrays, message):
    np.savez(tmp_path / "table.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        data.load(tmp_path / "table.npz")
    assert "\n" not in str(error.value)


def test_a_damaged_npz(tmp_path):
    path = tmp_path / "table.npz"
    np.savez_compressed(path, x=np.ones((30, 2)), y=np.arange(30) % 2)
    whole = path.read_bytes()
    for position in range(0, len(whole), 5):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
        try:
            data.load(path)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 (a byte that matters to nobody may change)


def test_classes_keep_their_names(write):
    for classes in (["9007199254740992", "9007199254740993"], ["0.12345670", "0.12345671"]):
        text = "a,y\n" + "".join(f"{i},{classes[i % 2]}\n" for i in range(20))
        labels = data.load(write(text), task="classification").preparation.labels
        assert list(map(float, labels)) == list(map(float, classes))
        assert len(set(labels)) == 2


def test_a_header_of_numbers_can_be_said(write):
    text = "2019,2020,2021\n" + "".join(f"{i},{i % 4},{i % 2}\n" for i in range(20))
    assert data.load(write(text), header=True).preparation.features == ("2019", "2020")
    found = data.read_features(write("2020,2019\n1,2\n"), ["2019", "2020"])
    np.testing.assert_array_equal(found, [[2, 1]])
    with_names = "a,b,c\n" + "".join(f"{i},{i % 4},{'xy'[i % 2]}\n" for i in range(20))
    with pytest.raises(DataError, match="row 1, column 'column 0': 'a' where a number belongs"):
        data.load(write(with_names), header=False)


def test_rows_beyond_float32_are_refused():
    preparation = data.load("iris").preparation
    with pytest.raises(
        DataError, match=r"x, row 1, column 'sepal width \(cm\)': 1e\+300 is out of"
    ):
        data.transform(preparation, np.array([[1.0] * 4, [1, 1e300, 1, 1]]))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_npz(write, content):
    with pytest.raises(DataError, match=r"table.npz: not (a complete|an) .npz"):
        data.load(write(content, "table.npz"))


def test_names_that_are_nothing():
    with pytest.raises(DataError, match=re.escape("digit: no such data; did you mean digits?")):
        data.load("digit")
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        data.load("gone.csv")
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        data.load("gone.npz")


def test_features_are_found_by_name(write):
    path = write("kind,width,height\n?,1,2\n,3,4\n")
    np.testing.assert_array_equal(data.read_features(path, ["height", "width"]), [[2, 1], [4, 3]])
    for absent in ("depth", "1"):  # a name is never taken for a position here
        with pytest.raises(DataError, match=f"no column '{absent}'"):
            data.read_features(path, ["height", absent])


def test_features_without_names_must_be_all_there_are(write, tmp_path):
    path = write("1,2\n3,4\n")
    np.testing.assert_array_equal(data.read_features(path, ["a", "b"]), [[1, 2], [3, 4]])
    with pytest.raises(DataError, match="2 columns, expected the 3 the network was trained on"):
        data.read_features(path, ["a", "b", "c"])
    np.savez(tmp_path / "x.npz", x=np.ones((4, 2)))
    assert data.read_features(tmp_path / "x.npz", ["a", "b"]).shape == (4, 2)
    assert data.read_features("iris", ["a"] * 4).shape == (150, 4)
