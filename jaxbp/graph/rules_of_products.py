"""The rules of products of vectors, matrices and arrays:  y = Σ a b  over the axes summed.

The pull of a product is a product again, over the axes that gy shares with the other operand:
of y = A·b, A receives gy·bᵀ and b receives Aᵀ·gy.  Both are written with an index letter for each
axis, as einsum has it.
"""

from string import ascii_lowercase
from typing import Any

import jax.numpy as jnp

from jaxbp.graph.rules_of_moves import unbroadcast
from jaxbp.graph.symbols import Symbol, atom, symbol, total


def dot(a: Any, b: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    """The product Σ a b over the axes that the dimension numbers name."""
    a, b = symbol(a), symbol(b)
    return _product(a, b, *_letters(a, b, dimension_numbers))


def pull_dot(
    i: int, gy: Any, y: Any, a: Any, b: Any, *, dimension_numbers: Any, **params: Any
) -> Any:
    """The adjoint that a (i = 0) or b (i = 1) receives:  Σ gy b  or  Σ a gy.

    i: the operand, 0 or 1.
    gy: the adjoint of y.
    y: a product of a and b.
    a, b: the operands.
    dimension_numbers: ((axes of a, of b that are summed), (axes of a, of b that are batched)).
    params: the equation's others; ``precision`` is kept.
    """
    if isinstance(gy, Symbol):
        a, b = symbol(a), symbol(b)
    of_a, of_b, of_y = _letters(a, b, dimension_numbers)
    if i == 0:
        return _product(gy, b, of_y, of_b, of_a, params.get("precision"))
    return _product(a, gy, of_a, of_y, of_b, params.get("precision"))


def affine(a: Any, b: Any, *terms: Any, **params: Any) -> Any:
    """W·z + b + ..., a product with terms added, so that gW = δ·zᵀ as the lectures have it."""
    return total([dot(a, b, **params), *terms])


def pull_affine(i: int, gy: Any, y: Any, a: Any, b: Any, *terms: Any, **params: Any) -> Any:
    """The adjoint that a factor (i < 2) or a term receives.

    i: the operand, 0 and 1 for the factors, then the terms.
    gy: the adjoint of y.
    y: the sum.
    a, b: the factors.
    terms: the terms, each broadcast to y's shape.
    params: those of the product, as in ``pull_dot``.
    """
    return pull_dot(i, gy, y, a, b, **params) if i < 2 else unbroadcast(gy, terms[i - 2])


def _letters(a: Any, b: Any, dimension_numbers: Any) -> tuple[str, str, str]:
    """The index letters of a, b and y = Σ a b: y has those that are not summed over."""
    (summed_a, summed_b), (batch_a, batch_b) = dimension_numbers
    of_a = list(ascii_lowercase[: a.ndim])
    of_b = list(ascii_lowercase[a.ndim : a.ndim + b.ndim])
    for axis_a, axis_b in zip((*summed_a, *batch_a), (*summed_b, *batch_b), strict=True):
        of_b[axis_b] = of_a[axis_a]
    batch = [of_a[axis] for axis in batch_a]
    free = [letter for letter in of_a if letter not in of_b]
    free += [letter for letter in of_b if letter not in of_a]
    return "".join(of_a), "".join(of_b), "".join(batch + free)


def _product(left: Any, right: Any, a: str, b: str, y: str, precision: Any = None) -> Any:
    """Σ left right over the letters that y has not."""
    if not isinstance(left, Symbol):
        return jnp.einsum(f"{a},{b}->{y}", left, right, precision=precision)
    return Symbol(_product_text(left, right, a, b, y))


def _product_text(left: Symbol, right: Symbol, a: str, b: str, y: str) -> str:
    """A·b, a·bᵀ, Aᵀ·B of two matrices or vectors; of arrays with more axes, their indices."""
    summed = set(a) & set(b) - set(y)
    free = [letter for letter in a + b if letter not in summed]
    if max(len(a), len(b), len(y)) > 2 or len(summed) > 1 or sorted(free) != sorted(y):
        return f"Σ {atom(left)}·{atom(right)} ({a},{b}→{y})"
    if not (a and b):  # a number times something
        turned = "ᵀ" if a + b != y else ""
        return f"{atom(left)}{turned if a else ''}·{atom(right)}{turned if b else ''}"
    if "".join(free) != y or len(a) < len(b):
        left, right, a, b = right, left, b, a
    turned_left = "ᵀ" if len(a) == 2 and a[1] not in summed else ""
    turned_right = "ᵀ" if b[0] not in summed else ""
    return f"{atom(left)}{turned_left}·{atom(right)}{turned_right}"
