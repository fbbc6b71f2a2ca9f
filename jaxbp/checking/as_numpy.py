"""Functions that need NumPy alone, though JAX could trace them.

Traced, ``np.sum(n**2 * w)`` is JAX's: integers have 32 bits, or those that they came in, an index
out of bounds is clamped, and an object keeps tracers where it would keep arrays.  So a function
that runs without JAX is a black box, whose arguments and results are NumPy's.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_NUMBERS = np.ndarray | np.generic | float | int


def need_numpy_alone(f: Callable[..., Any], grads: Any, args: tuple[Any, ...]) -> bool:
    """Whether f, and grads where it is a function, run at these arguments without JAX: each is
    called once, with copies."""
    functions = [f, grads] if callable(grads) else [f]
    return all(_runs(function, args) for function in functions)


def _runs(function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    copies = jax.tree.map(_copied, args)
    with jax.transfer_guard("disallow"), warnings.catch_warnings():  # JAX would need a transfer
        warnings.simplefilter("ignore")
        try:
            results = jax.tree.leaves(function(*copies))
        except Exception as error:  # JAX's, or the user's own, of which this one is NumPy's
            return isinstance(error, IndexError)
    return bool(results) and all(isinstance(result, _NUMBERS) for result in results)


def _copied(leaf: Any) -> Any:
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf
