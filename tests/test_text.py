"""Tables of text fit a given width; numbers and JSON."""

import numpy as np
import pytest

from jaxbp.text import Table, align, html, number, one_line, plain, significant

TABLE = Table(("leaf", "error", "verdict"), [("weight", "1.5e-09", "pass"), ("b", "0", "fail")])


def test_columns_while_they_fit_then_closer_then_a_list():
    assert align(TABLE, 25).splitlines() == [
        "leaf      error  verdict",
        "weight  1.5e-09  pass",
        "b             0  fail",
    ]
    assert align(TABLE, 23).splitlines()[1] == "weight 1.5e-09 pass"
    listed = "weight\n  error    1.5e-09\n  verdict  pass\n\nb\n  error    0\n  verdict  fail"
    assert align(TABLE, 20) == listed


def test_a_table_does_not_depend_on_the_terminal(monkeypatch):
    texts = []
    for columns in ("10", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        texts.append(align(TABLE))
    assert texts[0] == texts[1] == align(TABLE, 100)


@pytest.mark.parametrize(
    "cells", [("1", "-2.5e+03"), ("4.25 ± 1e-09", "nan ± inf"), ("12%", ""), ("1.2±0.3", "-inf")]
)
def test_numbers_are_aligned_to_the_right(cells):
    size = max(map(len, cells))
    lines = align(Table(("a", "b"), [("leaf", cell) for cell in cells])).splitlines()
    assert lines[1:] == [f"leaf  {cell.rjust(size)}".rstrip() for cell in cells]


def test_names_made_of_the_letters_of_numbers_are_aligned_to_the_left():
    leaves = Table(("leaf", "error"), [("a", "1"), ("fan", "2"), ("e", "3"), ("if", "4")])
    assert [line[0] for line in align(leaves).splitlines()] == ["l", "a", "f", "e", "i"]


def test_a_table_without_rows_is_its_header():
    assert align(Table(("leaf", "error"), [])) == "leaf  error"


def test_a_cell_is_one_line():
    table = Table(("class", "a\nb"), [("a\nb", "1"), ("\x1b[2J", "2")])
    assert align(table).splitlines() == [r"class    a\nb", r"a\nb        1", r"\x1b[2J     2"]


def test_html_escapes():
    assert "<td>&lt;lambda&gt;</td>" in html(Table(("f",), [("<lambda>",)]))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.5e-9, "1.5e-09"), (0.25, "2.5e-01"), (float("nan"), "nan")],
)
def test_a_number_is_told_by_its_order_of_magnitude(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 4, "0"),
        (0.25, 4, "0.25"),
        (1 / 3, 4, "0.3333"),
        (1e20, 6, "1e+20"),
        (np.inf, 3, "inf"),
    ],
)
def test_significant_digits(value, digits, text):
    assert significant(value, digits) == text


def test_plain_is_what_json_takes():
    assert plain({"a": (np.float32(0.5), float("inf")), "b": np.arange(2)}) == {
        "a": [0.5, None],
        "b": [0, 1],
    }


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError("\n first"), "ValueError: first"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_an_exception_in_a_line(error, text):
    assert one_line(error) == text
