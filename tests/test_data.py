"""Reading, splitting and standardising; and every way a file can be wrong, in one line."""

import re
import warnings
from contextlib import nullcontext

import numpy as np
import pytest

pytest.importorskip("sklearn")

from jaxbp import data
from jaxbp.data import arrays, delimited
from jaxbp.data.errors import DataError, DataWarning
from jaxbp.data.preparation import alike


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
    whole = arrays.read_bundled("wine").x
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


NORMAL = np.random.default_rng(0).normal(size=(40, 4))
DECIMALS = "".join(",".join(f"{value:.3f}" for value in row) + "\n" for row in NORMAL)
LABELLED = "".join(f"{a:.3f},{b:.3f},{'ab'[int(a > 0)]}\n" for a, b, *_ in NORMAL)
INTEGERS = "".join(f"{i * 7},{i * i % 11},{i % 2}\n" for i in range(40))


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("0,1,2,3\n" + DECIMALS, ("0", "1", "2")),  # as pandas names an array's columns
        ("0,1,2\n" + LABELLED, ("0", "1")),
        ("0,1,2\n" + INTEGERS, ("0", "1")),
        ("2019,2020,2021,2022\n" + DECIMALS, ("2019", "2020", "2021")),
        ("2020,2024,label\n" + LABELLED, ("2020", "2024")),
        ("2020,2021,label\n" + "".join(f"{i},{i % 5},{'ab'[i % 2]}\n" for i in range(40)), None),
        ("2019,2020,Survived\n" + INTEGERS, ("2019", "2020")),
        ("id,2019,kind\n" + LABELLED, ("id", "2019")),
    ],
)
def test_a_header_with_numbers_is_taken_for_one_and_told_of(write, text, features):
    with pytest.warns(DataWarning, match=r"row 1 \('.* was read as the names of the columns"):
        dataset = data.load(write(text))
    assert features is None or dataset.preparation.features == features
    assert dataset.decisions.header is True
    assert sum(len(part.x) for part in batches(dataset)) == 40


@pytest.mark.parametrize(
    "text", ["5,4,3,a\n", "5.5,4,2,a\n", "0,0,0,a\n", "5,6,?,a\n", "1e3,2,1,b\n"]
)
def test_a_first_row_of_data_is_data(write, text):
    below = "".join(f"{i % 9},{i % 7}.5,{i % 5},{'ab'[i % 2]}\n" for i in range(40))
    if "?" in text:
        with pytest.raises(DataError, match="row 1, column 'column 2': missing value"):
            data.load(write(text + below), missing="error")
        return
    dataset = data.load(write(text + below))
    assert dataset.decisions.header is False
    assert sum(len(part.x) for part in batches(dataset)) == 41


def test_a_first_row_in_doubt_is_told_of_in_a_warning_and_in_errors(write):
    bits = "".join(f"{i % 2},{i % 3},{i % 4}\n" for i in range(40))
    with pytest.warns(DataWarning, match=r"row 1 was read as data; header=True \(--header yes\)"):
        dataset = data.load(write("0,1,2\n" + bits))
    assert sum(len(part.x) for part in batches(dataset)) == 41
    with pytest.raises(DataError, match=r"missing value; row 1 was read as data; header=True"):
        data.load(write("0,1,2\n" + bits + "1,,3\n"), missing="error")
    with pytest.raises(DataError, match=r"'id' where a number.*; row 1 was read as data"):
        data.load(write("id,0.5,kind\n" + LABELLED))
    assert data.load(write("0,1,2\n" + bits), header=False).decisions.notes == ()


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
@pytest.mark.parametrize("start", [0, 1])
def test_a_column_that_counts_the_rows_is_left_out(write, name, start):
    body = "".join(f"{i + start},{row}\n" for i, row in enumerate(LABELLED.splitlines()))
    with pytest.warns(DataWarning, match="has no name and counts the rows: it is left out"):
        dataset = data.load(write(f"{name},height,width,kind\n{body}"))
    assert dataset.preparation.features == ("height", "width")
    assert dataset.decisions.dropped == (name,)
    with pytest.warns(DataWarning, match="left out"):
        dataset = data.load(write(f"{name},0,1,2\n{body}"), header=True)
    assert dataset.preparation.features == ("0", "1")
    shuffled = "".join(sorted(body.splitlines(keepends=True)))
    with pytest.warns(DataWarning, match="has no name, and is an input like the others"):
        dataset = data.load(write(f"{name},height,width,kind\n{shuffled}"))
    assert dataset.preparation.features == (name, "height", "width")
    text = f"{name},height,width,kind\n{body}".replace(",a\n", ",1\n").replace(",b\n", ",2\n")
    assert data.load(write(text), target=0, task="regression").decisions.dropped == ()


@pytest.mark.parametrize(
    "text",
    [
        "\n\nheight,width,kind\n1,2,a\n",
        "height;width;kind\n1;2;a\n",
        '"height, in m","width, in m",kind\n1,2,a\n',
        "height, in m;width, in m;kind\n1;2;a\n",
        '"height;in;m","width;in;m",kind\n1,2,a\n',
        "height, a; b\twidth\tkind\n1\t2\ta\n",
    ],
)
def test_the_delimiter_is_the_one_that_cuts_all_rows_alike(write, text):
    table = delimited.read_delimited(write(text))
    assert len(table.names) == 3
    np.testing.assert_array_equal(np.array(table.columns).T, [["1", "2", "a"]])


def told_of_classes_alike(alike=True):
    message = r"the classes '.*' and '.*' differ by their text alone"
    return pytest.warns(DataWarning, match=message) if alike else nullcontext()


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["01067", "1067", "99084"], ("01067", "1067", "99084")),
        (["1", "01", "2"], ("01", "1", "2")),
        (["007", "010", "042"], ("007", "010", "042")),
        (["1_0", "1_1", "2"], ("1_0", "1_1", "2")),
        (["+1", "1", "2"], ("+1", "1", "2")),
        (["-1", "0", "10"], ("-1", "0", "10")),
        (["1.0", "2.0", "10.0"], ("1.0", "2.0", "10.0")),
        (["1e1", "2e0", "3"], ("2e0", "3", "1e1")),
        (["9" * 30, "8" * 30, "1"], ("1", "8" * 30, "9" * 30)),
        (["٣", "3", "2"], ("2", "3", "٣")),
    ],
)
def test_a_class_is_called_by_its_cells_text(write, cells, labels):
    text = "a,b,y\n" + "".join(f"{i},{i % 7},{cells[i % 3]}\n" for i in range(60))
    with told_of_classes_alike(len({*map(float, cells)}) < 3):
        dataset = data.load(write(text), task="classification")
    assert dataset.preparation.labels == labels
    assert np.bincount(np.concatenate([part.target for part in batches(dataset)])).tolist() == (
        [20] * 3
    )
    first = data.load_for(dataset.preparation, write(text)).target[:3]
    assert [labels[index] for index in first] == cells


def test_columns_of_a_target_are_known_by_their_names(write):
    rng = np.random.default_rng(0)
    labels, values = rng.integers(0, 2, (40, 2)), rng.normal(size=(40, 2)).round(3)
    for target, head in ((labels, "hot,wet"), (values, 'w,"h, in cm"')):
        lines = [f"{i},{a},{b}" for i, (a, b) in enumerate(target.tolist())]
        path = write(f"x,{head}\n" + "\n".join(lines) + "\n")
        dataset = data.load(path, target="1,2")
        names = dataset.preparation.labels or dataset.preparation.targets
        found = [
            data.load_for(dataset.preparation, path, target=each).target
            for each in ("1,2", "2,1", names, names[::-1])
        ]
        for each in found:
            np.testing.assert_array_equal(each, found[0])
    with pytest.raises(DataError, match=r"target: got \(1, None\)|target: got False"):
        data.load(path, target=(1, None))


@pytest.mark.parametrize(
    ("first", "row"),
    [
        ("0.25,0.5,0.75,class", "{a:.3f},{b:.3f},{c:.3f},{kind}"),
        ("0.0,1.0,2.0,3.0", "{a:.3f},{b:.3f},{c:.3f},{a:.3f}"),
        ("1e3,1e4,1e5,y", "{a:.3f},{b:.3f},{c:.3f},{kind}"),
    ],
)
def test_a_first_row_that_may_be_names_is_told_of(write, first, row):
    rng = np.random.default_rng(0)
    lines = [
        row.format(a=a, b=b, c=c, kind="ab"[i % 2])
        for i, (a, b, c) in enumerate(rng.normal(size=(60, 3)))
    ]
    path = write("\n".join([first, *lines]) + "\n")
    with pytest.warns(DataWarning, match="row 1 was read as data; header=True"):
        data.load(path, stratify=False)


def test_an_error_says_what_row_1_was_read_as(write):
    path = write("10,20,30\n" + "".join(f"{i},{2 * i},{i % 2}\n" for i in range(9)))
    with pytest.raises(DataError, match=r"class '30' has 1 row, and .*; row 1 was read as data"):
        data.load(path)


def test_pandas_index_may_have_been_written_twice(write):
    lines = "".join(f"{i},{i},{i % 7}.5,{i % 2}\n" for i in range(30))
    with pytest.warns(DataWarning) as told:
        dataset = data.load(write("Unnamed: 0.1,Unnamed: 0,p,y\n" + lines))
    assert "'Unnamed: 0' has no name and counts the rows" in str(told[-1].message)
    assert dataset.preparation.features == ("p",)
    assert dataset.decisions.dropped == ("Unnamed: 0.1", "Unnamed: 0")


def test_names_that_look_alike_are_told_of():
    for pair in (("é", "e\u0301"), ("a b", "a\xa0b"), ("Yes", "yes")):
        assert "differ by their text alone" in alike(pair)[0]
    assert not alike(("a", "b"))


def test_a_number_has_no_underscore(write):
    with pytest.raises(DataError, match="row 12, column 'a': '1_0' where a number belongs"):
        data.load(write("a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(10)) + "1_0,1\n"))


@pytest.mark.parametrize("target", [-1.7, True, ["a", "b"], np.float64(1), np.zeros(100)])
def test_a_target_that_is_no_name_and_no_position(write, target):
    with pytest.raises(DataError, match=r"^target: got .*, expected one name or position"):
        data.load(write(rows()), target=target)
    for text in ("-1.7", "True", "1_0", " 1"):
        with pytest.raises(DataError, match="no column"):
            data.load(write(rows()), target=text)
    assert data.load(write(rows()), target=np.int64(-1)).preparation.labels == ("a", "b")


@pytest.mark.parametrize(
    ("target", "task", "reason"),
    [
        (np.arange(30) % 26, "regression", r"26 different integers: .*--task classification"),
        (np.arange(30) % 11, "classification", r"11 different integers: .*--task regression"),
        (np.arange(30) % 2, "classification", "^2 different integers$"),
        (np.arange(30) % 2 == 0, "classification", "^$"),
        (np.arange(30) / 7, "regression", "^$"),
        (np.eye(10)[np.arange(30) % 10], "classification", "10 columns, one of them 1 in each row"),
        (np.arange(90).reshape(30, 3) % 2, "classification", "3 columns, each 0 or 1: .* several"),
        (np.arange(90).reshape(30, 3) % 4, "regression", "3 columns of numbers"),
    ],
)
def test_why_it_is_this_task(tmp_path, target, task, reason):
    x = np.random.default_rng(0).normal(size=(30, 2))
    np.savez(tmp_path / "y.npz", x=x, y=target)
    with warnings.catch_warnings(action="ignore", category=DataWarning):  # of a class in no row
        decisions = data.load(tmp_path / "y.npz", stratify=False).decisions
    assert decisions.task == task
    assert decisions.target == "y"
    assert re.search(reason, decisions.reason)


def test_classes_are_counted_by_their_text(write):
    text = "a,y\n" + "".join(f"{i},{('1', '1.0', '2')[i % 3]}\n" for i in range(60))
    with told_of_classes_alike():
        dataset = data.load(write(text))
    assert dataset.decisions.notes == ("the classes '1' and '1.0' differ by their text alone",)
    assert dataset.preparation.labels == ("1", "1.0", "2")
    reason = "2 different integers, written in 3 ways: taken for classes"
    assert dataset.decisions.reason.startswith(reason)


def test_a_split_that_fails_says_what_was_guessed(write):
    text = "a,n\n" + "".join(f"{i},{i % 6 if i != 20 else 9}\n" for i in range(40))
    with pytest.raises(DataError, match=r"class '9' has 1 row.*; the target has 7 different integ"):
        data.load(write(text))


def test_one_hot_rows_are_classes(tmp_path):
    classes = np.arange(30) % 3
    np.savez(tmp_path / "hot.npz", x=np.ones((30, 2)), y=np.eye(3, dtype=np.uint8)[classes])
    dataset = data.load(tmp_path / "hot.npz")
    assert dataset.preparation.labels == ("0", "1", "2")
    batch = data.load_for(dataset.preparation, tmp_path / "hot.npz")
    np.testing.assert_array_equal(batch.target, classes)
    quantities = data.load(tmp_path / "hot.npz", task="regression")
    assert quantities.preparation.labels is None
    assert data.load_for(quantities.preparation, tmp_path / "hot.npz").target.shape == (30, 3)


def test_columns_of_0_and_1_are_labels_of_which_a_row_may_have_several(write, tmp_path):
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (40, 2))
    lines = [f"{a:.3f},{p},{q}" for a, (p, q) in zip(rng.normal(size=40), target, strict=True)]
    path = write("x,hot,wet\n" + "\n".join(lines) + "\n")
    for chosen in ("hot,wet", "1, 2", "-2,-1"):
        dataset = data.load(path, target=chosen)
        assert dataset.preparation.several_labels
        assert dataset.preparation.labels == ("hot", "wet")
        assert dataset.preparation.features == ("x",)
    assert dataset.decisions.target == "hot,wet"
    assert dataset.decisions.task == "classification"
    np.testing.assert_array_equal(
        data.load_for(dataset.preparation, path, target="hot,wet").target, target
    )
    quantities = data.load(path, target="hot,wet", task="regression").preparation
    assert quantities.labels is None
    assert quantities.target_scale.shape == (2,)
    np.savez(tmp_path / "y.npz", x=rng.normal(size=(40, 3)), y=target)
    assert data.load(tmp_path / "y.npz").preparation.labels == ("0", "1")
    one_hot = write("x,hot,cold\n" + "".join(f"{i},{i % 2},{1 - i % 2}\n" for i in range(40)))
    found = data.load(one_hot, target="hot,cold").preparation
    assert (found.labels, found.several_labels) == (("hot", "cold"), False)
    assert data.load_for(found, one_hot, target="hot,cold").target[:3].tolist() == [1, 0, 1]
    for text, chosen, message in [
        ("x,hot,wet\n1,0,1\n2,0,3\n", "hot,wet", "row 3: the target is 3, expected 0 or 1"),
        ("x,hot,wet\n1,0,1\n", "wet", "expected 2 target columns of 0 and 1, one for each label"),
        ("x,hot,wet\n1,0,1\n", "hot,wt", "no column 'wt'; did you mean 'wet'"),
        ("x,hot,wet\n1,0,1\n", "hot,1", "target: got 'hot,1', expected each column once"),
    ]:
        with pytest.raises(DataError, match=message):
            data.load_for(dataset.preparation, write(text), target=chosen)
    with pytest.raises(DataError, match="every column is a target"):
        data.load(path, target="x,hot,wet")


def test_rows_to_evaluate_on(write, tmp_path):
    for task, target, expected in [
        ("classification", "kind", [0, 1]),
        ("regression", "width", [-1, 1]),
    ]:
        preparation = data.Preparation(
            ("height",), np.zeros(1), np.ones(1), ("a", "b"), np.array([2.0]), np.array([1.0])
        )
        if task == "regression":
            preparation = preparation._replace(labels=None)
        path = write("kind,height,width\na,5,1\nb,6,3\n")
        batch = data.load_for(preparation, path, target=target)
        np.testing.assert_array_equal(batch.x, [[5], [6]])
        assert batch.target.ravel().tolist() == expected
        for text, options, message in [
            ("kind,height\nc,5\n", {"target": 0}, r"row 2: the target 'c' is none of the netw"),
            ("height,kind\n5,?\n", {}, "row 2, column 'kind': missing value"),
            ("kind,height\na,5\n", {}, "column 'height' is one of the inputs; name the target"),
            ("1,2,3\n1,2,3\n", {}, "2 columns, expected the 1 the network was trained on"),
        ]:
            if task == "classification":
                with pytest.raises(DataError, match=message):
                    data.load_for(preparation, write(text), **options)
    np.savez(tmp_path / "two.npz", x=np.ones((3, 1)), y=np.ones((3, 2)))
    with pytest.raises(DataError, match="2 target columns, expected 1"):
        data.load_for(preparation, tmp_path / "two.npz")
    wine = data.load("wine").preparation
    assert set(data.load_for(wine, "wine").target.tolist()) == {0, 1, 2}


def test_columns_of_a_frame_are_taken_by_name():
    pandas = pytest.importorskip("pandas")
    iris = data.load("iris").preparation
    x = data.read_features("iris", iris.features)
    frame = pandas.DataFrame(x, columns=iris.features)
    expected = data.transform(iris, x)
    frame.insert(0, "id", range(150))
    np.testing.assert_array_equal(data.transform(iris, frame[frame.columns[::-1]]), expected)
    with pytest.raises(
        DataError, match=r"x: no column 'petal width \(cm\)', which the network was"
    ):
        data.transform(iris, frame.drop(columns=iris.features[-1]))
    numbered = iris._replace(features=("0", "1", "2", "3"))
    np.testing.assert_array_equal(data.transform(numbered, pandas.DataFrame(x)), expected)


@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (4, 1), (1,), ()])
def test_rows_of_another_width_never_broadcast(shape):
    iris = data.load("iris").preparation
    message = f"x: got shape {shape}, expected rows of 4 columns"
    with pytest.raises(DataError, match=re.escape(message)):
        data.transform(iris, np.ones(shape))


def test_text_is_no_row_of_numbers():
    with pytest.raises(DataError, match="x: expected rows of numbers"):
        data.transform(data.load("iris").preparation, np.array([["a"] * 4]))


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
    with pytest.warns(data.DataWarning, match="'x' and 'y' are read, and not 'other'"):
        dataset = data.load(tmp_path / "images.npz")
    assert dataset.decisions.dropped == ("other",)
    assert dataset.train.x.shape[1] == 20
    assert dataset.preparation.labels == ("0", "1", "2")
    np.savez(tmp_path / "named.npz", x=images, kind=np.array(["b", "a"] * 15))
    assert data.load(tmp_path / "named.npz", target="kind").preparation.labels == ("a", "b")


def test_images_are_of_the_shape_trained_on(tmp_path):
    images = np.arange(600, dtype=np.uint8).reshape(30, 4, 5)
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(30) % 3)
    preparation = data.load(tmp_path / "images.npz").preparation
    rows = data.transform(preparation, images.reshape(30, 20))
    np.testing.assert_array_equal(data.transform(preparation, images), rows)
    np.save(tmp_path / "images.npy", images)
    np.testing.assert_array_equal(data.load_rows(preparation, tmp_path / "images.npy")[0], rows)
    others = images.reshape(30, 5, 4)
    np.savez(tmp_path / "others.npz", x=others, y=np.arange(30) % 3)
    np.save(tmp_path / "others.npy", others)
    of_shape = r"images of shape \(5, 4\), expected \(4, 5\), as those the network was trained on"
    for read, source, message in [
        (data.load_for, tmp_path / "others.npz", of_shape),
        (data.load_rows, tmp_path / "others.npz", of_shape),
        (data.load_rows, tmp_path / "others.npy", r"numbers, or images of shape \(4, 5\)"),
        (data.transform, others, r"\(30, 5, 4\), expected rows of 20 columns, or ima.* \(4, 5\)"),
    ]:
        with pytest.raises(DataError, match=message):
            read(preparation, source)


def test_npz_with_several_quantities(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "two.npz", x=rng.normal(size=(30, 3)), y=rng.normal(5, 2, size=(30, 2)))
    dataset = data.load(tmp_path / "two.npz", standardize_target=False)
    assert dataset.train.target.shape[1] == 2
    assert abs(dataset.train.target.mean() - 5) < 1


BODY = rows()


def test_a_class_of_one_row_needs_a_split_without_stratifying(write):
    with pytest.warns(DataWarning, match="no training row is of class 'c'"):
        dataset = data.load(write(BODY + "1,2,c\n"), stratify=False, seed=3)
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
            "table.csv: class 'c' has 1 row.*needs 3 of each; use stratify=False "
            r"\(--no-stratify\) to allow it",
        ),
        ("a,a,y\n1,2,3\n", "table.csv: two columns are called 'a'"),
        (BODY + "1,1e308,a\n", "table.csv, row 32, column 'width': 1e308 is not finite in float32"),
        (BODY + '"1\n",x,a\n', "table.csv, row 32, column 'width': 'x' where a number"),
        (BODY + '"1,2,a\n', "not a readable CSV"),
        (BODY + "1,2,a\0\n", r"not a readable CSV \(row 32 holds a NUL"),
        ("x,y\n" + "1,2.5\n" * 9, "table.csv: every row has the same target, expected two values"),
        (BODY + "1," + "x" * 99 + ",a\n", "'x{37}...' where a number belongs"),
    ],
)
def test_a_csv_that_is_wrong(write, text, message):
    with pytest.raises(DataError, match=message) as error:
        data.load(write(text), missing="error")
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
        ({"validation": "a"}, "validation, test: got 'a' and 0.2, expected positive shares"),
        ({"seed": 1.5}, "seed: got 1.5, expected a whole number"),
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
        (
            {"x": np.array([[1], [2**53 + 1]]), "y": np.arange(2)},
            r"x, row 1, column 0: 9007199254740993 is an integer beyond 2⁵³ that float64",
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
    with pytest.raises(DataError, match="x: some values are masked"):
        data.transform(preparation, np.ma.masked_equal([[1.0, 2, 3, 4]], 3))
    with pytest.raises(DataError, match=r"x: got datetime64\[D\], expected rows of numbers"):
        data.transform(preparation, np.array([["2020-01-01"] * 4], "M8[D]"))
    with pytest.raises(DataError, match=r"source: got ndarray, expected a name or a file's path"):
        data.load(np.ones((3, 2)))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_npz(write, content):
    with pytest.raises(DataError, match=r"table.npz: not (a complete|an) .npz"):
        data.load(write(content, "table.npz"))


def test_names_that_are_nothing(tmp_path):
    with pytest.raises(DataError, match=re.escape("digit: no such data; did you mean digits?")):
        data.load("digit")
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        data.load("gone.csv")
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        data.load("gone.npz")
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match=r"a\.csv: a folder, expected a file"):
        data.load(tmp_path / "a.csv")


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
