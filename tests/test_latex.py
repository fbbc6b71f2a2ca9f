"""The equations of a graph in LaTeX: well-formed, of macros that amsmath has, and the formula's."""

import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import ONE_OF_EACH, lecture
from test_networks import drawn

from jaxbp import graph
from jaxbp.cli.expressions import parse
from jaxbp.graph.render.latex import Translator, name_of

#: what plain LaTeX with amsmath defines, of all that there may be
MACROS = set(
    re.findall(
        r"\\(?:[a-zA-Z]+|.)",
        r"""\begin \end \\ \quad \; \text \operatorname \frac \tfrac \sqrt \left \right \sum \cdot
        \odot \times \exp \log \sin \cos \tan \sinh \cosh \tanh \max \min \arcsin \arccos \arctan
        \to \partial \infty \ge \le \ne \top \mathbf \hat \bar \tilde \dot \_ \$ \% \& \# \{ \}
        \textbackslash \textasciitilde \textasciicircum \alpha \beta \delta \lambda \sigma \mu
        \theta \Sigma""",
    )
)


def check(latex):
    """Braces and environments close in order, macros are known, no superscript follows another."""
    found = re.findall(r"\\(?:[a-zA-Z]+|.)", latex)
    assert set(found) <= MACROS, set(found) - MACROS
    depth, environments, sized = 0, [], 0
    for token in re.findall(r"\\(?:begin|end)\{[a-z]+\*?\}|\\(?:left|right)\b|\\.|[{}]", latex):
        if token.startswith(r"\begin"):
            environments.append((token[6:], depth))
        elif token.startswith(r"\end"):
            assert environments.pop() == (token[4:], depth)
        elif token in {r"\left", r"\right"}:
            sized += 1 if token == r"\left" else -1
        elif token in "{}":
            depth += 1 if token == "{" else -1
        assert depth >= 0 <= sized
    assert (depth, environments, sized) == (0, [], 0)
    flat, before = latex, ""
    while flat != before:  # the innermost groups first, so that "^{...}^" is seen at every depth
        assert not re.search(r"\^\{[^{}]*\}\s*(\^|')", flat), flat
        flat, before = re.sub(r"(?<!\^)\{[^{}]*\}", "", flat), flat
    assert latex.isascii()


EXPRESSIONS = [
    "exp(x*z) + x*z/log(x) + sin(log(x))/(x*z)",
    "ŷ = sqrt(abs(x))**0.5/z; σ = max(ŷ, 1e-9); loss_2 = tanh(σ); -(loss_2/(x - z))**2 + 2**x",
    "where(x > 0, relu(x), erf(z)) + atan2(x, -z) + log2(x) + sigmoid(-x) + x%z + asin(x/9)",
    "x**z**0.3 + (x*z)**-1 + 1/(x + z) - (x - 3)*-z + 1e-12*x",
]


def test_formulas_are_latex():
    with jax.enable_x64(True):
        for text in EXPRESSIONS:
            check(graph.trace(parse(text).function(), 2.0, 3.0).to_latex())
        lines = graph.trace(lecture, 2.0, 3.0).to_latex().splitlines()
    assert r"a &= x \cdot z = 6 \\" in lines
    assert r"d &= \frac{a}{c} = 8.65617 \\" in lines
    assert (
        r"g_{c} &= g_{d} \cdot \left(-\frac{a}{c^{2}}\right) + g_{e} \cdot \cos(c) = -12.36 \\"
        in (lines)
    )
    assert lines[:2] == ["% forward", r"\begin{align*}"]
    assert lines[-1] == r"\end{align*}"


def test_a_network_is_latex():
    def loss(w, x):
        a = graph.named(w @ x, "a⁽¹⁾", adjoint="δ⁽¹⁾")
        return jnp.sum(graph.named(jnp.tanh(a), "ŷ") ** 2 * jnp.exp(a)[::-1] + jnp.sqrt(x[0] ** 2))

    latex = graph.trace(
        loss, np.array([[0.5, -1.0], [2.0, 0.3]]), np.array([1.0, 2.0]), names=["w⁽¹⁾", "x"]
    ).to_latex()
    check(latex)
    for line in (
        r"w^{(1)} &= \begin{bmatrix} 0.5 & -1 \\ 2 & 0.3 \end{bmatrix} \\",
        r"x &= \begin{bmatrix} 1 \\ 2 \end{bmatrix} \\",
        r"a^{(1)} &= w^{(1)} \cdot x = \begin{bmatrix} -1.5 \\ 2.6 \end{bmatrix} \\",
        r"\hat{y} &= \tanh(a^{(1)}) =",
        r"g_{w^{(1)}} &= \delta^{(1)} \cdot x^{\top} =",
        r"w^{(1)\top} \cdot \delta^{(1)}",
    ):
        assert line in latex, latex


def test_names_are_text_where_they_are_no_letters():
    odd = "</p>\\end{align*} $x_1^2 & 50% #{}~🙂"
    latex = graph.trace(
        lambda x: graph.named(x * x, odd) + 1, 2.0, names=["params[0]['w']"]
    ).to_latex()
    check(latex)
    names = {
        "ŷ⁽²⁾": (r"\hat{y}", "(2)"),
        "x₁": ("x_{1}", ""),
        "W12": ("W_{12}", ""),
        "w_2": ("w_{2}", ""),
        "δ⁽¹⁾": (r"\delta", "(1)"),
        "Σ": (r"\Sigma", ""),
        "loss": (r"\text{loss}", ""),
        "a_b": (r"\text{a\_b}", ""),
    }
    assert {name: name_of(name) for name in names} == names


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("a·b/(c + d)", r"\frac{a \cdot b}{c + d}"),
        ("-a/b²", r"-\frac{a}{b^{2}}"),
        ("(a + b)/c", r"\frac{a + b}{c}"),
        ("(a⁽¹⁾)²", "(a^{(1)})^{2}"),
        ("a⁽¹⁾ᵀ·b", r"a^{(1)\top} \cdot b"),
        ("√(a - b) ⊙ ones", r"\sqrt{a - b} \odot \mathbf{1}"),
        ("x^0.5", "x^{0.5}"),
        ("2^(a + b)", "2^{a + b}"),
        ("1e-05·a", r"1 \cdot 10^{-5} \cdot a"),
        ("log2(a) + erf⁻¹(b)", r"\log_{2}(a) + \operatorname{erf}^{-1} (b)"),
        ("gb at [0:2, 1]", r"g_{b} \;\text{at}\; [0 : 2, 1]"),
        ("gb·(½·[a = b])", r"g_{b} \cdot (\tfrac{1}{2} \cdot [a = b])"),
        ("gb·(∂a⁽¹⁾/∂b)", r"g_{b} \cdot \left(\frac{\partial a^{(1)}}{\partial b}\right)"),
        ("a·[b ≥ c]/b[0]", r"\frac{a \cdot [b \ge c]}{b[0]}"),
        ("relu'(a)·|b|", r"\operatorname{relu}'(a) \cdot |b|"),
        ("(softmax'(b))ᵀ·c", r"(\operatorname{softmax}'(b))^{\top} \cdot c"),
    ],
)
def test_a_formula_is_read_word_by_word(text, latex):
    names = {name: name_of(name) for name in ("a", "b", "c", "d", "x", "a⁽¹⁾")} | {
        "gb": ("g_{b}", "")
    }
    assert "".join(Translator(names).terms(text)) == latex


@pytest.mark.slow
def test_another_reader_of_mathematics_agrees_that_it_is():
    """Matplotlib's mathtext, which knows most of it, reads each line."""
    parser = pytest.importorskip("matplotlib.mathtext").MathTextParser("path")
    for text in EXPRESSIONS:
        with jax.enable_x64(True):
            latex = graph.trace(parse(text).function(), 2.0, 3.0).to_latex()
        for line in latex.splitlines():
            if "&" in line:
                plain = line.removesuffix(r" \\").replace("&", " ").replace(r"\text", r"\mathrm")
                parser.parse(f"${plain}$")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no TeX here")
def test_pdflatex_sets_it(tmp_path, x64):
    """Expressions, networks, and their nodes opened."""
    equations = [graph.trace(parse(text).function(), 2.0, 3.0).to_latex() for text in EXPRESSIONS]
    for activation, head in ONE_OF_EACH:
        network = drawn(activation, head)[-1]
        equations += [network.to_latex(), network.opened("L").to_latex()]
    lines = [r"\documentclass{article}", r"\usepackage{amsmath}", r"\begin{document}"]
    page = "\n\n".join([*lines, *equations, r"\end{document}"])
    (tmp_path / "page.tex").write_text(page, encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:]
