"""The update rules of scikit-learn's solvers "sgd" and "adam", as optax transformations.

    momentum    v ← μ v - η g            w ← w + v
    Nesterov    v ← μ v - η g            w ← w + μ v - η g
    Adam        m ← β₁ m + (1 - β₁) g,   v ← β₂ v + (1 - β₂) g²,
                w ← w - ηₜ m / (√v + ε),  ηₜ = η √(1 - β₂ᵗ) / (1 - β₁ᵗ)

optax's ``sgd`` multiplies the velocity by the learning rate of now, so it differs where that rate
changes; its ``adam`` adds ε to √(v / (1 - β₂ᵗ)), which is Algorithm 1 of Kingma and Ba (2015).  The
rule here is the one at the end of their section 2.  After Sutskever et al. (2013), section 2.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbp.training.constants import Constants, Numbers


class Rule(NamedTuple):
    """An update rule as a function of its numbers: what an epoch is compiled for."""

    solver: str  # "sgd" or "adam"
    nesterov: bool = False

    @property
    def lifted(self) -> bool:
        """Whether its numbers are arguments of its program, as ``jaxbp.training`` asks."""
        return True

    def __call__(self, constants: Constants) -> optax.GradientTransformation:
        """The optimiser with these numbers, which may be under trace."""
        rate, (numbers, _) = constants.learning_rate, constants.numbers
        if self.solver == "adam":
            return adam(rate, *numbers)
        return momentum(rate, *numbers, nesterov=self.nesterov)


def momentum_numbers(decay: float) -> Numbers:
    """The numbers of ``momentum``."""
    return (decay,)


def adam_numbers(beta_1: float, beta_2: float, epsilon: float) -> Numbers:
    """The numbers of ``adam``: 1 - β and ln β are exact, as they would not be in float32."""
    logarithms = (math.log(beta) if beta else -math.inf for beta in (beta_1, beta_2))
    return (beta_1, 1 - beta_1, beta_2, 1 - beta_2, *logarithms, epsilon)


def momentum(rate: Any, decay: Any, *, nesterov: bool) -> optax.GradientTransformation:
    """Gradient descent with a velocity v, which is decayed by μ; η is the rate."""

    def init(params: Any) -> Any:
        return optax.TraceState(jax.tree.map(_zeros, params))

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        def moved(velocity: Any, grad: Any) -> Any:
            return decay * velocity - rate * grad

        velocity = jax.tree.map(moved, state.trace, grads)
        updates = jax.tree.map(moved, velocity, grads) if nesterov else velocity
        return updates, optax.TraceState(velocity)

    return optax.GradientTransformation(init, update)


def adam(
    rate: Any,
    beta_1: Any,
    rest_1: Any,
    beta_2: Any,
    rest_2: Any,
    log_1: Any,
    log_2: Any,
    epsilon: Any,
) -> optax.GradientTransformation:
    """Adam with ε beside √v.

    rate: η.
    beta_1, rest_1, log_1: β₁, 1 - β₁ and ln β₁, of the mean of the gradient.
    beta_2, rest_2, log_2: those of the mean of its square.
    epsilon: ε.
    """

    def init(params: Any) -> Any:
        zeros = jax.tree.map(_zeros, params)
        return optax.ScaleByAdamState(np.int32(0), zeros, jax.tree.map(np.copy, zeros))

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        step = state.count + 1
        mean = jax.tree.map(lambda m, g: beta_1 * m + rest_1 * g, state.mu, grads)
        square = jax.tree.map(lambda v, g: beta_2 * v + rest_2 * g**2, state.nu, grads)
        time = step.astype(jnp.result_type(rate))  # 1 - βᵗ without loss of digits where β is near 1
        of_step = rate * jnp.sqrt(-jnp.expm1(time * log_2)) / -jnp.expm1(time * log_1)
        updates = jax.tree.map(lambda m, v: -of_step * m / (jnp.sqrt(v) + epsilon), mean, square)
        return updates, optax.ScaleByAdamState(step, mean, square)

    return optax.GradientTransformation(init, update)


def _zeros(leaf: Any) -> np.ndarray:
    """Zeros like a leaf, for which no program is compiled."""
    return np.zeros(leaf.shape, leaf.dtype)
