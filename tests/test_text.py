"""Tables of text fit the terminal they are printed in."""

import pytest

from jaxbp.text import Table, align, html, number, plain

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


def test_html_escapes():
    assert "<td>&lt;lambda&gt;</td>" in html(Table(("f",), [("<lambda>",)]))


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.0, 2, "0"), (1.5e-9, 2, "1.5e-09"), (0.25, 4, "0.25"), (float("nan"), 2, "nan")],
)
def test_numbers_are_short(value, digits, text):
    assert number(value, digits) == text


def test_plain_is_what_json_takes():
    import numpy as np

    assert plain({"a": (np.float32(0.5), float("inf")), "b": np.arange(2)}) == {
        "a": [0.5, None],
        "b": [0, 1],
    }
