"""Tables as people have them: kinds of columns, gaps, notations, formats, and new rows."""

import datetime
import gzip
import json
import re
import sys
import warnings
from contextlib import nullcontext

import numpy as np
import pytest

pytest.importorskip("sklearn")
polars = pytest.importorskip("polars")
pytest.importorskip("narwhals")

import jaxbp
from jaxbp import activations, cli, data, heads
from jaxbp.data import DataError, DataWarning, delimited, loading
from jaxbp.data.facts import fill_of
from jaxbp.data.split import split_rows


def table(count=60, **cells):
    """A CSV whose columns are given by a function of the row, with a target "y" of a and b."""
    named = {**cells, "y": lambda i: "ab"[i % 2]}
    body = "".join(",".join(str(cell(i)) for cell in named.values()) + "\n" for i in range(count))
    return ",".join(named) + "\n" + body


@pytest.fixture
def load(tmp_path):
    """Load a text as a file."""

    def load(text, name="table.csv", **options):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return data.load(path, **options)

    return load


def all_rows(dataset):
    return np.vstack([part.x for part in (dataset.train, dataset.validation, dataset.test)])


def column_of(dataset, name="x"):
    return dataset.preparation.columns[dataset.preparation.features.index(name)]


# Kinds


@pytest.mark.parametrize(
    ("cell", "kind", "inputs"),
    [
        (lambda i: i / 7, "number", ("x",)),
        (lambda i: i % 2, "boolean", ("x",)),
        (lambda i: ["True", "false"][i % 2], "boolean", ("x",)),
        (lambda i: ["yes", "NO"][i % 3 > 0], "boolean", ("x",)),
        (lambda i: "tf"[i % 3 > 0], "boolean", ("x",)),
        (lambda i: ["red", "", "blue"][i % 3], "category", ("x=blue", "x=red", "x=(missing)")),
        (lambda i: f"2020-01-{i % 28 + 1:02}", "date", ("x (days since 2020-01-01)",)),
        (lambda i: f"2020/1/{i % 9 + 1} 12:00", "date", ("x (days since 2020-01-01)",)),
        (lambda i: ["1", "2", "?"][i % 3], "number", ("x", "x is missing")),
        (lambda i: "NaN" if i == 7 else i, "number", ("x",)),
    ],
)
def test_kinds_of_columns(load, cell, kind, inputs):
    dataset = load(table(x=cell, n=lambda i: i % 5))
    assert column_of(dataset).kind == kind
    assert dataset.preparation.inputs == (*inputs, "n")
    assert dataset.preparation.features == ("x", "n")
    assert dataset.train.x.shape[1] == len(inputs) + 1
    assert f"columns=(x: {kind}, n: number)" in repr(dataset)


def test_categories_are_one_hot_and_not_scaled(load):
    dataset = load(table(x=lambda i: ["red", "green", "blue"][i % 3]))
    assert set(all_rows(dataset).ravel().tolist()) == {0, 1}
    assert (all_rows(dataset).sum(axis=1) == 1).all()
    text = table(x=lambda i: 10 + i % 3)
    assert load(text).preparation.inputs == ("x",)
    dataset = load(text, categorical="x")
    assert dataset.preparation.inputs == ("x=10", "x=11", "x=12")
    assert "'x': 3 categories" in dataset.decisions.columns
    rare = load(table(x=lambda i: "pqrst"[i] if i in {3, 4} else "pq"[i % 2]), seed=4)
    told = "'x': 2 categories; 2 of a category that no training row has: 0 in all of them"
    assert rare.decisions.columns == (told,)
    assert (all_rows(rare).sum(axis=1) == 0).sum() == 2


def test_a_date_is_the_days_since_the_training_rows_first(load):
    days = np.random.default_rng(0).permutation(60)
    origin = datetime.date(1999, 12, 1)
    dataset = load(table(x=lambda i: origin + datetime.timedelta(int(days[i]))), standardize=False)
    assert dataset.train.x.min() == 0
    assert dataset.preparation.inputs[0].startswith("x (days since 1999-12-")
    assert sorted((all_rows(dataset)[:, 0] - all_rows(dataset).min()).tolist()) == list(range(60))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (lambda i: f"Mr. {i}", r"'x': text with 60 different values in 60 rows: .*--drop x\) leav"),
        (lambda i: f"{i % 28 + 1}.{i % 12 + 1}.2020", "'1.1.2020' may begin with the day or the m"),
        (
            lambda i: f"1,{i:03}".join('""'),
            r"'1,000' may have a decimal comma or groups.*--decimal",
        ),
        (
            lambda i: "wide" if i == 9 else i,
            r"row 11, column 'x': 'wide' where a number.*--drop x\)",
        ),
    ],
)
def test_what_can_be_no_input_is_refused_in_a_line(load, cell, message):
    text = table(x=cell, other=lambda i: f"id {i}", n=lambda i: i % 5)
    with pytest.raises(DataError, match=message) as error:
        load(text)
    assert "\n" not in str(error.value)
    assert "(nor can 'other')" in str(error.value)
    dataset = load(text, drop=["x", 1])
    assert (dataset.preparation.features, dataset.decisions.dropped) == (("n",), ("x", "other"))
    assert len(load(text, drop="x", categorical="other").preparation.inputs) > 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": "z"}, "no column 'z'"),
        ({"drop": "y"}, "drop: column 'y' is the target"),
        ({"categorical": [1.5]}, r"categorical: got \[1.5\], expected a column's name or position"),
        ({"drop": True}, "drop: got True, expected a column's name"),
        ({"missing": "zero"}, "missing: got 'zero', expected impute or error"),
        ({"decimal": ";"}, "decimal: got ';', expected '.' or ','"),
        ({"encoding": "latn-1"}, "encoding: got 'latn-1', expected a name such as latin-1"),
        ({"encoding": 1}, "encoding: got 1, expected a name"),
        ({"weights": ["x", "n"]}, "weights: got .* expected a column's name"),
        ({"weights": "n"}, "row 2, column 'n': the weight -1, expected a number of at least 0"),
        ({"weights": "c"}, "row 2, column 'c': 'p' where a number belongs"),
        ({"drop": ["x", "n", "c"]}, "every column is a target, dropped or the weights, expected"),
    ],
)
def test_options_that_do_not_fit_a_table(load, options, message):
    with pytest.raises(DataError, match=message):
        load(table(x=lambda i: i, n=lambda i: i % 5 - 1, c=lambda i: "pq"[i % 2]), **options)
    with pytest.raises(DataError, match="drop: iris is no table, whose columns have names"):
        data.load("iris", drop="x")


# Missing cells


def test_missing_cells_are_the_training_rows_median_and_told(load):
    numbers = np.random.default_rng(0).normal(size=100).round(3)
    cell = lambda gap: lambda i: "" if i % gap == 3 else numbers[i]  # noqa: E731
    text = table(100, x=cell(5), few=cell(50), c=lambda i: "-" if i % 20 == 3 else "pq"[i % 3 > 1])
    dataset = load(text, standardize=False)
    assert dataset.preparation.inputs == (
        *("x", "x is missing", "few"),
        *("c=p", "c=q", "c=(missing)"),
    )
    train = dataset.train.x
    gaps = train[:, 1] == 1
    median = np.median(train[~gaps, 0])
    assert (train[gaps, 0] == np.float32(median)).all()
    assert column_of(dataset).fill == pytest.approx(median)
    told = dataset.decisions.columns
    assert told[0].startswith("'x': 20 missing: the median ")
    assert told[0].endswith(", and an input that tells")
    assert told[1].startswith("'few': 2 missing: the median ")
    assert told[2] == "'c': 2 categories; 5 missing: a category of their own"
    assert 0 < all_rows(dataset)[:, 1].sum() == 20
    with pytest.raises(DataError, match="row 5, column 'x': missing value"):
        load(text, missing="error")


def test_rows_without_a_target_and_columns_without_a_cell_are_left_out_and_told(load):
    text = table(x=lambda i: i, e=lambda i: "")
    text = text.replace("\n7,,b", "\n7,,").replace("\n9,,b", "\n9,,?")
    with pytest.warns(DataWarning) as told:
        dataset = load(text)
    said = [str(each.message) for each in told]
    assert "2 rows without a target left out; missing='error' refuses such a table" in said[0]
    assert "column 'e' is empty: it is left out" in said[1]
    assert len(all_rows(dataset)) == 58
    assert (dataset.preparation.features, dataset.decisions.dropped) == (("x",), ("e",))
    with pytest.raises(DataError, match="row 9, column 'y': missing value"):
        load(text, missing="error")
    with pytest.raises(DataError, match="row 2, column 'x': missing value"):
        load("x,n\n" + ",1\n" * 9, target="x")


# How numbers and text are written


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (["0,25", "1,5", "-3"], [0.25, 1.5, -3]),
        (["1.234,5", "7", "1.000"], [1234.5, 7, 1000]),
        (["1,234.5", "7", "1,000"], [1234.5, 7, 1000]),
        (["1 234,5", "7", "2'000"], [1234.5, 7, 2000]),
        (["1.234", "7", "1e3"], [1.234, 7, 1000]),
        (["0,904", "7", "1,234"], [0.904, 7, 1.234]),  # no thousands begin with a 0
    ],
)
def test_decimal_commas_and_groups_of_thousands(load, cells, numbers):
    text = "x;y\n" + "".join(f"{cells[i % 3]};{'ab'[i % 2]}\n" for i in range(60))
    found = all_rows(load(text, standardize=False))
    assert sorted({*found.ravel().tolist()}) == pytest.approx(sorted(numbers))
    quantity = load(text.replace("a", "1"), target="x", task="regression", standardize_target=False)
    assert sorted({*quantity.train.target.ravel().tolist()}) == pytest.approx(sorted(numbers))


def test_the_decimal_sign_can_be_said(load):
    text = "x;y\n" + "".join(f"1,{i:03};{'ab'[i % 2]}\n" for i in range(60))
    assert all_rows(load(text, decimal=",", standardize=False)).max() == np.float32(1.059)
    assert all_rows(load(text, decimal=".", standardize=False)).max() == 1059


def test_text_is_read_as_it_was_written(load):
    plain = table(x=lambda i: i % 7, c=lambda i: ["ä, b", "ö"][i % 3 > 0].join('""'))
    quoted = plain.replace('"', '""')
    expected = load(plain)
    assert expected.preparation.inputs[1:] == ("c=ä, b", "c=ö")
    for text, options in [
        ("\ufeff" + plain, {}),
        (plain.encode("latin-1"), {"encoding": "latin-1"}),
        (plain.encode("utf-16"), {}),
        (plain.replace(",a", ", a").replace(',"', ', "'), {}),  # blanks after commas
        ("".join(f'"{line}"\n' for line in quoted.splitlines()), {}),  # a line quoted as a whole
        (plain.replace("\n", "\r\n"), {}),
        (plain.replace("\n", "\n\n"), {}),
    ]:
        found = load(text, **options)
        np.testing.assert_array_equal(all_rows(found), all_rows(expected))
        assert found.preparation.inputs == expected.preparation.inputs
    with pytest.raises(DataError, match=r"not a readable CSV \('utf-8'.*\(--encoding latin-1\)"):
        load(plain.encode("latin-1"))
    lines = load(table(x=lambda i: f'"{"pq"[i % 2]}\n2"')).preparation.inputs
    assert lines == ("x=p\n2", "x=q\n2")


def test_a_table_of_text_alone_may_have_no_header(load, tmp_path):
    text = "".join(f"{'ep'[i % 2]},{'xyz'[i % 3]},{'xw'[i % 5 > 2]}\n" for i in range(60))
    with pytest.warns(DataWarning, match="row 1 was read as data; header=True"):
        dataset = load(text, target=0)
    assert dataset.decisions.header is False
    assert len(all_rows(dataset)) == 60
    assert len(dataset.preparation.inputs) == 5
    new = tmp_path / "new.csv"
    new.write_text("z,w\n")
    assert data.load_rows(dataset.preparation, new)[0].tolist() == [[0, 0, 1, 1, 0]]
    assert load("kind,cap,ring\n" + text, target=0).preparation.features == ("cap", "ring")


# Formats


CELLS = {
    "x": [None if i == 5 else i / 8 for i in range(60)],
    "b": [i % 3 == 0 for i in range(60)],
    "c": [None if i % 9 == 0 else "pqr"[i % 3] for i in range(60)],
    "d": [datetime.date(2020, 1, 1) + datetime.timedelta(i) for i in range(60)],
    "n": [i % 4 for i in range(60)],
    "y": ["a" if i % 2 else "b" for i in range(60)],
}


def test_an_index_of_pandas_that_has_a_name_is_a_column_before_the_others(tmp_path):
    """As ``reset_index`` has it: by default it is not the target, though it is written last."""
    frame = polars.DataFrame(CELLS | {"id": range(60)})
    told = {"index_columns": ["id", {"kind": "range"}]}
    frame.write_parquet(tmp_path / "t.parquet", metadata={"pandas": json.dumps(told)})
    with pytest.warns(DataWarning, match="'id', the index of pandas, is a column like others"):
        loaded = data.load(tmp_path / "t.parquet")
    assert (loaded.decisions.target, loaded.preparation.features[0]) == ("y", "id")


def test_every_format_is_the_same_table(tmp_path):
    frame = polars.DataFrame(CELLS)
    sources = {"polars": frame, "dict": {name: np.array(cells) for name, cells in CELLS.items()}}
    for suffix in ("csv", "tsv", "parquet", "feather"):
        sources[suffix] = tmp_path / f"table.{suffix}"
    frame.write_csv(sources["csv"])
    frame.write_csv(sources["tsv"], separator="\t")
    index = polars.Series("__index_level_0__", range(len(frame)))  # as pandas writes its own
    frame.with_columns(index).write_parquet(sources["parquet"])
    frame.write_ipc(sources["feather"], compression="zstd")
    content = sources["csv"].read_bytes()
    sources["gz"] = tmp_path / "table.csv.gz"
    sources["gz"].write_bytes(gzip.compress(content))
    if zstandard := _installed("zstandard"):
        sources["zst"] = tmp_path / "table.csv.zst"
        sources["zst"].write_bytes(zstandard.ZstdCompressor().compress(content))
    if pandas := _installed("pandas"):
        sources["pandas"] = pandas.DataFrame(CELLS)
    if (openpyxl := _installed("openpyxl")) and _installed("python_calamine"):
        sources["xlsx"] = tmp_path / "table.xlsx"
        book = openpyxl.Workbook()
        for row in (frame.columns, *frame.rows()):
            book.active.append(list(row))
        book.save(sources["xlsx"])
    expected = data.load(sources["csv"], categorical="n")
    assert len(expected.preparation.inputs) == 11
    for kind, source in sources.items():
        target = None if kind == "parquet" else "y"  # the last column, as the index is none
        context = pytest.warns(DataWarning, match="'__index_level_0__', the index of pandas, is l")
        with context if kind == "parquet" else nullcontext():
            found = data.load(source, target=target, categorical=["n"])
        assert found.preparation.inputs == expected.preparation.inputs, kind
        assert found.preparation.labels == ("a", "b")
        np.testing.assert_array_equal(found.train.x, expected.train.x, err_msg=kind)
        np.testing.assert_array_equal(found.test.target, expected.test.target)
        again = data.load_for(expected.preparation, source, target="y")
        assert sorted(again.x.sum(1).tolist()) == sorted(all_rows(expected).sum(1).tolist())


def _installed(name):
    try:
        return __import__(name)
    except ImportError:
        return None


def test_an_array_on_disk_is_a_table_without_names(tmp_path):
    array = np.c_[np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 2]
    np.save(tmp_path / "a.npy", array)
    dataset = data.load(tmp_path / "a.npy")
    assert dataset.preparation.features == ("column 0", "column 1")
    assert dataset.preparation.labels == ("0", "1")
    np.save(tmp_path / "x.npy", array[:, :2])
    rows, told = data.load_rows(dataset.preparation, tmp_path / "x.npy")
    np.testing.assert_array_equal(rows, data.transform(dataset.preparation, array[:, :2]))
    assert told == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            b"PAR1 \xff\xfe",
            r"t.csv: not a CSV but Parquet \(\.parquet\): its name is to end so",
        ),
        (
            "t.csv",
            b"Mine,,\na,b,y\n1,2,3\n",
            "row 1: 2 cells without a name, expected all columns'",
        ),
        ("t.parquet", b"hello", "t.parquet: not a readable .parquet"),
        ("t.feather", b"hello", "t.feather: not a readable .feather"),
        ("t.npy", b"hello", "t.npy: not a complete .npy, or one of pickled objects"),
        ("t.csv.gz", b"hello", "t.csv.gz: not a readable CSV"),
        ("t.json", b"{}", r"t.json: no kind of file that is read \(there are digits, .*\.xlsx"),
        ("t.csv", b"a\n1\n", "one column, expected features and a target with a comma"),
    ],
)
def test_files_that_are_wrong(load, name, content, message):
    with pytest.raises(DataError, match=message) as error:
        load(content, name)
    assert "\n" not in str(error.value)


def test_other_columns_decide_what_a_sign_means(load):
    """1.040 beside 6,67 is 1040, and "3,928" beside 6.67 is 3928; alone the latter is refused."""
    rows = (f"{i // 7},{i % 10};{1 + i % 5}.{100 + i};{'ab'[i % 2]}\n" for i in range(60))
    with pytest.warns(DataWarning, match=r"column 'n': '1\.100' is taken for 1100, by the decimal"):
        german = load("m;n;y\n" + "".join(rows)).preparation
    assert [column.decimal for column in german.columns] == [",", ","]
    found = [
        data.load_rows(german, {"m": [m], "n": [n]}) for m, n in (("2,5", "1.040"), (2.5, 1040))
    ]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert [told for _, told in found] == [[], []]
    with pytest.raises(DataError, match=r"'1\.040' may have a decimal point, and the rows trained"):
        data.load_rows(german, {"m": [2.5], "n": ["1.040"]})
    both = "".join(f"{i},5;{i}.25;{1 + i % 5}.{100 + i};{'ab'[i % 2]}\n" for i in range(60))
    with pytest.raises(DataError, match=r"'1\.100' may have a decimal comma or groups"):
        load("m;k;n;y\n" + both)
    english = table(m=lambda i: f"{i / 7:.2f}", n=lambda i: f'"{3 + i % 4},{100 + i}"')
    with pytest.warns(DataWarning, match=r"column 'n': '3,100' is taken for 3100"):
        assert column_of(load(english), "n").decimal == "."


def test_a_target_is_read_as_other_columns_show(load):
    rows = "".join(f"{i},{i % 10};{1 + i % 5}.{100 + i}\n" for i in range(60))
    with pytest.warns(DataWarning, match=r"column 'y': '1\.100' is taken for 1100"):
        assert load("m;y\n" + rows).preparation.target_mean[0] > 1000


END = "every row ends with a delimiter: the empty column after it is left out"
COMMENT = "line 1 begins with # and can be no row: left out"


@pytest.mark.parametrize("rows", [60, 1200])  # by Python's csv, and by polars where it may
@pytest.mark.parametrize(
    ("change", "features", "told"),
    [
        (lambda text: text.replace("\n", ",\n"), ("p", "q"), END),
        (lambda text: text.partition("\n")[2].replace("\n", ",\n"), ("column 0", "column 1"), END),
        (lambda text: "sep=;\r\n" + text.replace(",", ";"), ("p", "q"), ""),
        (lambda text: "\ufeffSEP=,\n" + text, ("p", "q"), ""),
        (lambda text: "# by hand, in 2020\n" + text, ("p", "q"), COMMENT),
        (lambda text: "# by hand\n# " + text, ("# p", "q"), COMMENT),
        (lambda text: "# " + text, ("# p", "q"), ""),
    ],
)
def test_what_stands_around_a_table_is_no_part_of_it(load, rows, change, features, told):
    text = table(rows, p=lambda i: f"{i / 7:.3f}", q=lambda i: i % 5)
    with warnings.catch_warnings(action="always", record=True) as found:
        loaded = load(change(text))
        with pytest.raises(DataError, match=rf"row {change(text).count(chr(10)) + 2}: 7 columns"):
            load(change(text) + "\n1,2;3,4;5,6;7,8;9,10;11,12;13\n")
    assert loaded.preparation.features == features
    assert len(all_rows(loaded)) == rows
    assert loaded.preparation.labels == ("a", "b")
    assert {str(each.message).partition(": ")[2] for each in found} == ({told} if told else set())


def test_a_target_whose_type_says_so_is_classes():
    columns = {"p": np.arange(300) / 7, "y": [str(i % 25) for i in range(300)]}
    for kind in (polars.Enum(columns["y"][:25]), polars.Categorical):
        frame = polars.DataFrame(columns, schema_overrides={"y": kind})
        assert data.load(frame).decisions.task == "classification"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            lambda i: f"2020-02-{1 + i % 30:02d}",
            r"column 'x': '2020-02-30' where a date, year",
        ),
        (lambda i: 10**18 + i % 3, "integers beyond 2⁵³, as 1000000000000000002, of which float64"),
        (
            lambda i: "3.5" if i else '"3,5"',
            r"column 'x': '3,5' where a number .*decimal=','",
        ),
    ],
)
def test_a_cell_that_would_change_its_column_is_named(load, cell, message):
    with pytest.raises(DataError, match=message):
        load(table(x=cell))


def test_a_truth_value_of_new_rows_is_0_or_1_or_told(load):
    preparation = load(table(x=lambda i: i % 2)).preparation
    _, told = data.load_rows(preparation, {"x": [0, 2, 1, 3]})
    assert told == ["column 'x': 2 of a value that no training row has (2, 3)"]


def test_frames_that_are_wrong():
    two = {"x": [1, 2], "y": ["a", "b"]}
    for frame, message in [
        ({"x": 3.0, "y": [1]}, r"table, column 'x': got 3, expected \(N,\)"),
        ({"x": np.ones(3), "y": np.ones(2)}, "table: columns of 2, 3 rows"),
        ({"x": [], "y": []}, "table: no rows"),
        ({"x": [1, 2], 1: [1, 2], "1": [1, 2]}, "table: two columns are called '1'"),
        (type("Frame", (), {"columns": []})(), "table: got Frame"),
        (polars.LazyFrame(CELLS), r"got LazyFrame, expected a DataFrame; its collect\(\) is one"),
        (two | {"x": [[1], [2]]}, r"column 'x': got shape \(2, 1\), expected numbers, text, truth"),
        (polars.DataFrame(two | {"x": [[1], [2]]}), "column 'x': got List.*, expected numbers, t"),
        (polars.DataFrame(two | {"x": [datetime.timedelta(1)] * 2}), "'x': got Duration.*, expec"),
        (two | {"x": np.array([b"a", b"b"])}, r"table, column 'x': got \|S1, expected numbers, te"),
        (two | {"x": np.ma.masked_equal([1, 2], 2)}, "table, column 'x': got masked values"),
    ]:
        with pytest.raises(DataError, match=message):
            data.load(frame)


def test_a_column_that_cannot_be_read_is_no_hindrance_where_it_is_not_used():
    frame = polars.DataFrame(CELLS)
    more = frame.with_columns(polars.Series("tags", [[1]] * 60), polars.Series("z", [b"z"] * 60))
    loaded = data.load(more, target="y", drop=("tags", "z"))
    np.testing.assert_array_equal(loaded.train.x, data.load(frame).train.x)
    raw, tagged = (data.load_rows(loaded.preparation, each)[0] for each in (frame, more))
    np.testing.assert_array_equal(raw, tagged)
    for wrong, message in [
        (
            {"target": "y", "drop": "z"},
            r"'tags': got List.*; drop='tags' \(--drop\) leaves",
        ),
        ({"target": "tags", "drop": "z"}, r"'tags': got List.*, expected numbers, text, truth"),
    ]:
        with pytest.raises(DataError, match=message):
            data.load(more, **wrong)
    with pytest.raises(DataError, match=r"'x': got List.*, expected numbers, text, truth"):
        data.load_rows(loaded.preparation, frame.with_columns(polars.Series("x", [[1]] * 60)))


def test_a_reader_that_is_not_installed_is_named(load, monkeypatch):
    for module, name in [
        ("polars", "t.parquet"),
        ("python_calamine", "t.xlsx"),
        ("zstandard", "t.csv.zst"),
    ]:
        monkeypatch.setitem(sys.modules, module, None)
        expected = f"needs {module}: pip install {module.replace('_', '-')}"
        with pytest.raises(DataError, match=expected):
            load(b"1", name)


def test_a_large_file_is_read_by_polars_as_by_csv(load, monkeypatch, tmp_path):
    lines = table(
        1500,
        x=lambda i: i / 7,
        c=lambda i: ["p", " q", '"r, s"'][i % 3],
        d=lambda i: f"2020-01-{i % 28 + 1:02}",
        g=lambda i: "" if i % 9 == 0 else i,
    ).splitlines()
    lines[700:700] = ["", "   "]
    text = "\n".join(lines) + "\n"
    by_polars = load(text)
    read = delimited.read_delimited(tmp_path / "table.csv")
    assert isinstance(read.columns[0], polars.Series)
    assert (len(read.columns[0]), read.line(0), read.line(1499)) == (1500, 2, 1503)
    errors = []
    for bad in (
        "1,2\n",
        "1,2,3,4,5,6\n",
        '1,"2"x,3,4,a\n',
        "wide,p,2020-01-01,3,a\n",
        "1,\0,,,a\n",
    ):
        with pytest.raises(DataError) as error:
            load(text + bad)
        errors.append(str(error.value))
    assert "row 1504: 2 columns, expected 5" in errors[0]
    assert "row 1504, column 'x': 'wide' where a number belongs" in errors[3]
    monkeypatch.setattr(delimited, "_by_polars", lambda *_, **__: None)
    by_csv = load(text)
    assert by_csv.preparation.columns == by_polars.preparation.columns
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(by_csv, part).x, getattr(by_polars, part).x)
    with pytest.raises(DataError, match="'wide' where a number belongs"):
        load(text + "wide,p,2020-01-01,3,a\n")


def test_a_table_of_numbers_is_split_and_scaled_as_an_array_is(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 20)).round(4), rng.integers(0, 3, 80)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    names = [*map("x{}".format, range(20)), "y"]
    np.savetxt(tmp_path / "a.csv", np.c_[x, y], "%.4f", ",", header=",".join(names), comments="")
    text = (tmp_path / "a.csv").read_text().replace(".0000\n", "\n")
    (tmp_path / "a.csv").write_text(text)
    array, rows = data.load(tmp_path / "a.npz", seed=3), data.load(tmp_path / "a.csv", seed=3)
    for part in ("train", "validation", "test"):
        np.testing.assert_allclose(getattr(rows, part).x, getattr(array, part).x, atol=1e-6)
        np.testing.assert_array_equal(getattr(rows, part).target, getattr(array, part).target)
    chosen = split_rows("", y.astype(np.int32), ("0", "1", "2"), 0.15, 0.2, 3)
    np.testing.assert_array_equal(rows.train.target, y[chosen[0]])


# New rows


def test_new_rows_become_what_the_training_rows_were(load, tmp_path):
    dataset = load(
        table(
            c=lambda i: "pqr"[i % 3],
            b=lambda i: ["yes", "no"][i % 2],
            d=lambda i: f"2020-01-{i % 28 + 1:02}",
            x=lambda i: i / 4,
        )
    )
    path = tmp_path / "model.safetensors"
    model = jaxbp.MLP((6, 2), activations.identity, heads.softmax_cross_entropy)
    params = (jaxbp.Layer(np.ones((2, 6), np.float32), np.zeros(2, np.float32)),)
    jaxbp.save(path, model, params, dataset.preparation)
    preparation = jaxbp.load(path).preparation
    assert preparation.columns == dataset.preparation.columns
    scale = dict(zip(preparation.inputs, preparation.scale, strict=True))
    assert [scale[f"c={c}"] for c in "pqr"] == [1, 1, 1]

    new = {
        "x": ["3.5", "", "?"],
        "note": ["q", "r", "s"],
        "d": ["2020-01-05", "", "2020-02-01 12:00"],
        "b": ["True", "n", "0"],
        "c": ["q", "z", ""],
    }
    (tmp_path / "new.csv").write_text(
        ",".join(new) + "\n" + "\n".join(map(",".join, zip(*new.values(), strict=True))) + "\n"
    )
    rows, told = data.load_rows(preparation, tmp_path / "new.csv")
    assert rows[:, :3].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    named = dict(zip(preparation.features, preparation.columns, strict=True))
    raw = rows * preparation.scale + preparation.mean
    np.testing.assert_allclose(raw[:, 3], [1, 0, 0], atol=1e-6)
    days = np.array([4, named["d"].fill - named["d"].origin, 31.5])
    np.testing.assert_allclose(raw[:, 4] - raw[0, 4] + 4, days - days[0] + 4, rtol=1e-5)
    np.testing.assert_allclose(raw[:, 5], [3.5, named["x"].fill, named["x"].fill], rtol=1e-5)
    assert told[0] == "column 'c': 2 of a category that no training row has ('z', missing)"
    assert told[1].startswith("column 'd': 1 missing, taken for the median 2020-01-")
    assert told[2].startswith("column 'x': 2 missing, taken for the median ")
    for source in (new, polars.DataFrame(new), np.array([new[name] for name in "cbdx"], object).T):
        with pytest.warns(DataWarning, match="column 'c': 2 of a category that no training row"):
            np.testing.assert_array_equal(data.transform(preparation, source), rows)
    with pytest.raises(DataError, match="x: no column 'd', which the network was trained on"):
        data.transform(preparation, {"c": ["p"], "b": [True], "x": [1]})
    with pytest.raises(
        DataError, match="x, row 0, column 'b': 'maybe' where true or false belongs"
    ):
        data.transform(preparation, {**new, "b": ["maybe", "no", "no"]})
    features = data.read_features(tmp_path / "new.csv", preparation.features)
    with pytest.warns(DataWarning):
        np.testing.assert_array_equal(data.transform(preparation, features), rows)
    plain = load(table(x=lambda i: i / 4)).preparation
    with pytest.raises(DataError, match="x, row 0, column 'x': '1,250' where a number belongs"):
        data.transform(plain, {"x": ["1,250"]})  # which may be 1.25
    strict = load(table(x=lambda i: i), missing="error").preparation
    with pytest.raises(DataError, match="x, row 1, column 'x': missing value"):
        data.transform(strict, {"x": [1, np.nan]})


def test_a_network_saved_before_there_were_columns_reads_its_table(load, tmp_path):
    dataset = load(table(x=lambda i: i, n=lambda i: i % 5))
    older = dataset.preparation._replace(columns=None)
    (tmp_path / "new.csv").write_text("n,x\n3,7\n")
    for preparation in (older, dataset.preparation):
        rows, _ = data.load_rows(preparation, tmp_path / "new.csv")
        np.testing.assert_array_equal(rows, data.transform(older, np.array([[7.0, 3.0]])))
    (tmp_path / "new.csv").write_text("n,x\n3,\n")
    with pytest.raises(DataError, match="row 2, column 'x': missing value"):
        data.load_rows(older, tmp_path / "new.csv")


def test_new_rows_without_names_may_have_all_the_columns_that_there_were(load, tmp_path):
    lines = "".join(f"{i / 4},{i % 5},{'pq'[i % 2]},{i / 8}\n" for i in range(60))
    dataset = load(lines, target=0, drop=2)
    assert dataset.preparation.features == ("column 1", "column 3")
    (tmp_path / "all.csv").write_text(lines)
    (tmp_path / "inputs.csv").write_text("".join(f"{i % 5},{i / 8}\n" for i in range(60)))
    found, _ = data.load_rows(dataset.preparation, tmp_path / "all.csv")
    np.testing.assert_array_equal(
        found, data.load_rows(dataset.preparation, tmp_path / "inputs.csv")[0]
    )
    batch = data.load_for(dataset.preparation, tmp_path / "all.csv", target=0)
    np.testing.assert_array_equal(batch.x, found)


def test_the_decimal_sign_of_a_target_can_be_said_of_new_rows(load, tmp_path):
    dataset = load("x;y\n" + "".join(f"{i};1,{i:03}\n" for i in range(60)), decimal=",")
    path = tmp_path / "table.csv"
    with pytest.raises(DataError, match="row 2, column 'y': '1,000' where a number belongs"):
        data.load_for(dataset.preparation, path)
    target = data.load_for(dataset.preparation, path, decimal=",").target
    values = target * dataset.preparation.target_scale + dataset.preparation.target_mean
    np.testing.assert_allclose(values[:, 0], 1 + np.arange(60) / 1000, rtol=1e-5)


def test_a_sign_of_new_rows_that_may_be_another_is_refused(load, tmp_path):
    """By decimal commas 2.904 would be 2904."""
    german = load("x;y\n" + "".join(f"{i % 7},{i:02};{'ab'[i % 2]}\n" for i in range(60)))
    english = load("x,y\n" + "".join(f"{i}.5,{'ab'[i % 2]}\n" for i in range(60)), decimal=".")
    preparation, path = german.preparation, tmp_path / "new.csv"

    def rows(text, preparation=preparation, **options):
        path.write_text(text)
        found, _ = data.load_rows(preparation, path, **options)
        return (found * preparation.scale + preparation.mean).ravel().tolist()

    with pytest.raises(DataError, match=r"'2\.904' may have a decimal point, and .* comma: dec"):
        rows("x\n2.904\n3\n")
    with pytest.raises(DataError, match=r"'2,904' may have a decimal comma, and .* point: dec"):
        rows('x\n"2,904"\n', english.preparation)
    assert rows("x\n2.904\n", decimal=".") == pytest.approx([2.904])
    assert rows("x;z\n2.904;1\n3,5;1\n") == pytest.approx([2904, 3.5])
    assert rows("x;z\n2;1\n2,5;1\n") == pytest.approx([2, 2.5])


def test_a_column_whose_type_says_so_is_of_categories():
    frame = polars.DataFrame({"x": ["10", "20"] * 15, "y": ["a", "b", "b"] * 10})
    loaded = data.load(frame.cast({"x": polars.Categorical}))
    assert loaded.preparation.inputs == ("x=10", "x=20")


def test_a_column_of_weights(load):
    text = table(x=lambda i: i, w=lambda i: i % 3)
    dataset = load(text, weights="w")
    assert dataset.preparation.features == ("x",)
    assert dataset.decisions.weights == load(text, weights=1).decisions.weights == "w"
    raw = dataset.train.x[:, 0] * dataset.preparation.scale + dataset.preparation.mean
    np.testing.assert_array_equal(dataset.train.weight, raw.round() % 3)
    assert dataset.test.weight is not None
    assert load(text).train.weight is None
    with pytest.raises(DataError, match="weights: column 'w' is 0 in every row"):
        load(table(x=lambda i: i, w=lambda i: 0), weights="w")
    with pytest.warns(DataWarning, match="no training row of a weight above 0 is of class 'a'"):
        load(table(x=lambda i: i, w=lambda i: i % 2), weights="w")


# The command


for _module in ("tyro", "rich", "matplotlib", "safetensors", "platformdirs"):
    pytest.importorskip(_module)


def titanic(path):
    """A table as people have it: names, text, gaps, truth values and dates."""
    rng = np.random.default_rng(0)
    lines = ["survived,class,name,sex,age,fare,port,alone,boarded"]
    for i in range(300):
        sex = rng.choice(["male", "female"])
        age = "" if rng.random() < 0.2 else f"{rng.uniform(1, 80):.1f}"
        port = rng.choice(["S", "C", "Q", ""], p=[0.7, 0.2, 0.05, 0.05])
        lived = int(rng.random() < (0.9 if sex == "female" else 0.1))
        lines.append(
            f'{lived},{rng.integers(1, 4)},"Person, Mr. {i}",{sex},{age},'
            f"{rng.lognormal(3, 1):.2f},{port},{rng.choice(['True', 'False'])},"
            f"1912-04-{rng.integers(1, 15):02}"
        )
    path.write_text("\n".join(lines) + "\n")


def run(*arguments):
    return cli.main(list(map(str, arguments)))


@pytest.mark.slow
def test_a_titanic_from_its_file_to_predictions(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    titanic(tmp_path / "titanic.csv")
    options = ["titanic.csv", "--target", "survived"]
    assert run("train", *options) == 2
    assert "column 'name': text with 300 different values" in capsys.readouterr().err

    options += ["--drop", "name", "--categorical", "class"]
    assert run("describe", *options) == 0
    out = " ".join(capsys.readouterr().out.split())
    for line in (
        "titanic.csv: 300 rows, 14 inputs",
        "target 'survived': classification, 2 classes (2 different integers)",
        "sex category 2: ",
        "2 one-hot age number",
        "alone boolean 2: 0 to 1 1 0 or 1",
        "boarded date 14: 1912-04-01 to 1912-04-14 1 days since the first",
        "name 0 left out",
    ):
        assert line in out
    monkeypatch.setenv("COLUMNS", "40")
    assert run("describe", "titanic.csv", "--target", "survived") == 0
    narrow = capsys.readouterr().out
    assert "--drop name" in narrow
    assert max(map(len, narrow.split("titanic.csv: column")[0].splitlines()[3:])) <= 40

    monkeypatch.setenv("COLUMNS", "100")
    fit = ["--hidden", "--optimizer", "sgd", "--batch-size", "full", "--epochs", 60]
    assert run("train", *options, *fit) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "column 'class': 3 categories" in out
    assert "missing: the median" in out
    assert "AUC" in out
    folder = tmp_path / "runs" / "titanic-1"
    for picture in ("learning_curve", "confusion_matrix", "importance"):
        assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((folder / "summary.json").read_text())
    assert "--drop name --categorical class" in summary["command"]
    assert summary["inputs"][:3] == ["class=1", "class=2", "class=3"]
    assert summary["test_auc"] > 0.7
    assert summary["dropped"] == ["name"]

    (tmp_path / "new.csv").write_text(
        "boarded,alone,port,fare,age,sex,class\n"
        "1912-04-03,True,X,7.25,,male,3\n1912-04-09,no,S,?,22,female,1\n"
    )
    assert run("predict", folder, "new.csv") == 0
    printed = capsys.readouterr()
    assert [line.split(",")[0] for line in printed.out.splitlines()] == ["label", "0", "1"]
    assert "new.csv: column 'age': 1 missing, taken for the median" in printed.err
    assert "'port': 1 of a category that no training row has ('X')" in printed.err
    (tmp_path / "new.csv").write_text("sex,class\nmale,3\n")
    assert run("predict", folder, "new.csv") == 2
    assert "no column 'age', nor 'fare', 'port', 'alone', 'boarded'" in capsys.readouterr().err
    assert run("evaluate", folder, "titanic.csv", "--weights", "fare", "--json") == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.7


def test_what_can_be_no_input_is_described_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    text = table(id=lambda i: f"no. {i}", x=lambda i: "?" if i else "7,5", one=lambda i: 1)
    (tmp_path / "t.csv").write_text(text.replace("7,5", '"7,500"'))
    assert run("describe", "t.csv", "--weights", "one") == 0
    out = capsys.readouterr().out
    assert "t.csv: 60 rows, 0 inputs" in out
    for line in (
        r"id +category +60: no\. 0, .* 0  refused",
        r"x +0  refused",
        r"one +0  weights of the rows",
        "column 'id': text with 60 different values",
        "column 'x': '7,500' may have a decimal comma",
    ):
        assert re.search(line, out), line
    assert run("describe", "t.csv", "--drop", "id", "--decimal", ",") == 0
    assert re.search(r"one +number +1: 1 to 1 +1  constant", capsys.readouterr().out)
    rare = {"c": lambda i: f"{i} is rare" if i < 5 else "a", "v": lambda i: "" if i < 4 else i}
    (tmp_path / "rare.csv").write_text(table(**rare))
    assert run("describe", "rare.csv") == 0
    out = capsys.readouterr().out
    dataset = data.load("rare.csv")  # whose training rows do not have them all
    inputs = dataset.preparation.inputs
    assert f"60 rows, {len(inputs)} inputs" in out
    assert f"one-hot, {6 - sum('c=' in name for name in inputs)} in no training row" in out
    median = re.search("the (median .*?)[,']", dataset.decisions.columns[1])[1]
    assert median in out
    assert run("describe", "iris") == 0
    assert re.search(r"petal width \(cm\) +number +22: 0\.1 to 2\.5", capsys.readouterr().out)


def test_what_training_will_refuse_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(table(x=lambda i: i / 7) + "1,c\n")
    assert run("describe", "t.csv") == 0
    told = "jaxbp train will refuse it: t.csv: class 'c' has 1 row, and a stratified split"
    assert told in capsys.readouterr().out
    for cell, lines in (
        (
            lambda i: ("1", "1.0", "2")[i % 3],
            ["2 different integers, written in 3 ways", "'1' and '1.0' differ by their text alone"],
        ),
        (lambda i: f"{i % 3 + 1}.5.2020", ["3 different dates: taken for classes, as they are no"]),
    ):
        body = "".join(f"{i / 7},{cell(i)}\n" for i in range(60))
        (tmp_path / "t.csv").write_text(f"x,y\n{body}")
        assert run("describe", "t.csv") == 0
        out = capsys.readouterr().out
        assert all(line in out for line in lines), out


def test_other_sheets_are_told(tmp_path):
    book = pytest.importorskip("openpyxl").Workbook()
    for i in range(61):
        book.active.append([i / 7, "ab"[i % 2]] if i else ["x", "y"])
    book.create_sheet("2020")
    book.save(tmp_path / "t.xlsx")
    with pytest.warns(DataWarning, match="sheet 'Sheet' is read, and 1 other not"):
        data.load(tmp_path / "t.xlsx")


@pytest.mark.slow
def test_unequal_weights_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(table(x=lambda i: i / 7, w=lambda i: 1 + i % 2))
    options = ["--weights", "w", "--epochs", "1", "--hidden", "2", "--output", "run"]
    assert run("train", "t.csv", *options) == 0
    assert run("evaluate", "run", "t.csv") == 0
    assert "all rows count alike; the run was trained by --weights w" in capsys.readouterr().out


def test_importance_is_of_what_the_network_uses(load):
    from jaxbp.checkpoint import Checkpoint
    from jaxbp.cli.importance import permuted
    from jaxbp.cli.scores import score

    rng = np.random.default_rng(0)
    pairs = zip(rng.integers(0, 3, 300), rng.normal(size=300), strict=True)
    lines = [f"{'pqr'[k]},{n:.3f},{k - 1 if k else 5}" for k, n in pairs]
    dataset = load("kind,noise,y\n" + "\n".join(lines) + "\n", task="regression")
    preparation = dataset.preparation
    of_kinds = np.array([[5.0, 0.0, 1.0]]) - preparation.target_mean
    weight = np.hstack([of_kinds / preparation.target_scale, [[0]]]).astype(np.float32)
    model = jaxbp.MLP((4, 1), activations.identity, heads.linear_squared_error)
    exact = Checkpoint(model, (jaxbp.Layer(weight, np.zeros(1, np.float32)),), preparation)
    assert score("test", exact, dataset.test).metrics["r2"] == pytest.approx(1)
    drops = permuted(exact, dataset.test, 0)
    assert drops.shape == (2, 5)
    assert (drops[0] > 0.5).all()  # all its categories at once
    assert (drops[1] == 0).all()


def test_scores_are_weighted_as_the_rows_are():
    from jaxbp.cli.scores import measure

    preparation = data.Preparation(
        ("x",), np.zeros(1), np.ones(1), ("a", "b"), np.zeros(1), np.ones(1)
    )
    target = np.array([0, 0, 1, 1, 1])
    found = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    weight = np.array([2, 0, 1, 3, 1])
    repeated = np.repeat(np.arange(5), weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for own in (np.array([0, 0, 1, 3, 1]), weight):  # a class without weight is absent
            rows = np.repeat(np.arange(5), own)
            weighted = measure("", preparation, jaxbp.Batch(target, target, own), found)
            plain = measure("", preparation, jaxbp.Batch(*[target[rows]] * 2), found[rows])
            assert weighted.metrics == pytest.approx(plain.metrics)
        quantities = preparation._replace(labels=None)
        values = target[:, None] * 1.5
        weighted = measure("", quantities, jaxbp.Batch(target, values, weight), found[:, :1])
        again = jaxbp.Batch(target[repeated], values[repeated])
        plain = measure("", quantities, again, found[repeated, :1])
        assert weighted.metrics == pytest.approx(plain.metrics)


def test_a_column_whose_name_is_a_number_is_found_by_it():
    """As pandas leaves them where a file has no header and a column is dropped."""
    rng = np.random.default_rng(0)
    frame = {name: rng.normal(size=60) for name in (1, 2, 3, 4)} | {3: np.arange(60) % 3}
    loaded = data.load(frame, target=3, drop=1, categorical=())
    assert (loaded.decisions.target, loaded.preparation.features) == ("3", ("2", "4"))
    trained = data.load(frame, target=4)
    assert trained.decisions.target == "4"
    options = {"target": None, "counts": False}
    for known, said in (("4",), []), (None, ["the target is column '5', the last one"]):
        preparation = trained.preparation._replace(targets=known)
        batch, told = loading.load_labelled(preparation, frame | {5: frame[1]}, **options)
        assert told == said
        assert (np.corrcoef(batch.target[:, 0], frame[4])[0, 1] > 0.99) == (known is not None)
    assert data.load(frame, target=-2).decisions.target == "3"
    with pytest.raises(DataError, match=r"table: no column '0' \(the columns are '1', '2'"):
        data.load(frame, target=0)


def test_numbers_are_no_dates(load):
    preparation = load(table(d=lambda i: f"2020-01-{i % 28 + 1:02}")).preparation
    with pytest.raises(DataError, match="row 1, column 'd': 2020 where a date, year first"):
        data.load_rows(preparation, {"d": [np.nan, 2020.0]})
    rows, _ = data.load_rows(preparation, {"d": [np.nan, np.nan]})  # both missing
    assert np.isfinite(rows).all()
    nothing, _ = data.load_rows(preparation, polars.DataFrame({"d": [None, None]}))
    np.testing.assert_array_equal(rows, nothing)


def test_one_hot_rows_that_are_none_are_named():
    frame = {"x": np.arange(60.0), "red": np.arange(60) % 2, "blue": 1 - np.arange(60) % 2}
    loaded = data.load(frame, target=("red", "blue"))
    assert data.load_for(loaded.preparation, frame).target.tolist() == [
        loaded.preparation.labels.index("red" if row % 2 else "blue") for row in range(60)
    ]
    for wrong in (0, 1):
        frame["red"][7] = frame["blue"][7] = wrong
        said = f"row 7: red, blue are {wrong}, {wrong}, expected one 1, and else 0"
        with pytest.raises(DataError, match=said):
            data.load_for(loaded.preparation, frame)


@pytest.mark.slow
def test_numbers_that_may_be_codes_are_told_of(load):
    """A postal code, as a file has it, and as a frame whose type is text has it."""
    cells = table(zip=lambda i: ["01234", "98765", "00501"][i % 3], x=lambda i: i)
    frame = {"zip": np.array(["01234", "98765"] * 30), "x": np.arange(60.0), "y": ["a", "b"] * 30}
    said = r"column 'zip': '01234' is read as a number; categorical='zip' \(--categorical zip\)"
    for read in (lambda **o: load(cells, **o), lambda **o: data.load(frame, **o)):
        with pytest.warns(DataWarning, match=said):
            assert read().preparation.features == ("zip", "x")
        assert "zip=01234" in read(categorical="zip").preparation.inputs


def test_a_column_that_is_constant_in_training_is_told_of(load):
    """Its weights are as they were drawn, so that another value moves the prediction by chance."""
    dataset = load(table(x=lambda i: i, year=lambda i: 2023, d=lambda i: "2023-05-06"))
    preparation = dataset.preparation
    assert dataset.decisions.columns[:2] == (
        "'year': 2023 in every training row, so that it tells nothing",
        "'d': date, in days since 2023-05-06; 2023-05-06 in every training row, so that it tells "
        "nothing",
    )
    new = {"x": [1, 2], "year": [2023, 2024], "d": ["2023-05-06", "2024-01-01"]}
    with pytest.warns(DataWarning, match=r"^table: column '(year|d)': 1 of a value that"):
        data.load_for(preparation, new | {"y": ["a", "b"]})
    _, told = data.load_rows(preparation, new)
    assert told == [
        "column 'year': 1 of a value that no training row has (2024)",
        "column 'd': 1 of a value that no training row has (2024-01-01)",
    ]


@pytest.mark.parametrize("rows", [5, 2000])  # read by Python's csv, and by polars
def test_a_row_of_empty_cells_is_a_row(tmp_path, rows):
    """So that each prediction stands beside its row, as pandas and Parquet have them."""
    frame = {"a": np.arange(60.0), "b": np.arange(60.0) % 7, "y": np.arange(60.0)}
    preparation = data.load(frame, target="y", task="regression").preparation
    lines = [f"{i},{i % 7}" for i in range(rows)]
    lines[1], lines[3] = ",", "3,"
    file = tmp_path / "new.csv"
    for more in ("", "\n"):  # a blank line is no row
        file.write_text("\n".join(["a,b", *lines[:2]]) + "\n" + more + "\n".join(lines[2:]) + "\n")
        x, told = data.load_rows(preparation, file)
        assert len(x) == rows
        assert told == [
            f"column 'a': 1 missing, taken for {fill_of(preparation.columns[0])}",
            f"column 'b': 2 missing, taken for {fill_of(preparation.columns[1])}",
        ]
    alone = data.load({"a": frame["a"], "y": frame["y"]}, target="y", task="regression").preparation
    file.write_text('a\n1.5\n""\n\n3.0\n')
    assert len(data.load_rows(alone, file)[0]) == 3
