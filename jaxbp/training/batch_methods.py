"""Batch methods: optimisers that make more of a full batch's gradient than a step along it.

The lectures' conjugate gradient descent and quasi-Newton methods, and truncated Newton, each an
optax transformation for ``fit(..., batch_size=None)``; optax's own L-BFGS is one as well.  They
"decrease the error function at each iteration until arriving at a minimum", so a minibatch, which
has another error function at every step, is not for them.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxbp.curvature import gauss_newton_vector_product
from jaxbp.model import Params

_conjugate_gradients: Callable[..., tuple[Any, None]] = jax.scipy.sparse.linalg.cg

_CARRIED_ON = ("fletcher_reeves", "polak_ribiere", "hestenes_stiefel", "dai_yuan")
_DAMPING = (1e-8, 1e8)  # outside this range it would take too long to recover


class TruncatedNewtonState(NamedTuple):
    """The trust in the quadratic model so far."""

    damping: Array


class MinimiserState(NamedTuple):
    """The state of a minimiser of optimistix."""

    inner: Any


#: by these states ``fit`` knows a method for full batches, alone or in a chain, and refuses
#: minibatches
FULL_BATCH_STATES = (TruncatedNewtonState, MinimiserState, optax.ScaleByLBFGSState)


def truncated_newton(
    iterations: int = 10, damping: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Solve (G + μI) d = -∇E by a few iterations of conjugate gradients, and step by d.

    iterations: of conjugate gradients a step, at least 1.
    damping: μ at the start, more than 0.

    G is the Gauss-Newton matrix, never formed: an iteration is one
    ``gauss_newton_vector_product``, which costs about as much as a gradient.  A step that does not
    lower the objective is not made.  The damping μ falls to a third where the fall in E is more
    than ¾ of what the quadratic model ½ dᵀ(G + μI)d + ∇Eᵀd promises, and rises fourfold where it
    is less than ¼ (Martens 2010, section 4; Marquardt 1963).  Raises ValueError for iterations or
    damping that are not positive.
    """
    if iterations < 1 or not damping > 0:
        raise ValueError(
            f"iterations, damping: got {iterations} and {damping}, expected at least 1 and more "
            "than 0"
        )

    def initial(params: Params) -> TruncatedNewtonState:
        return TruncatedNewtonState(jnp.asarray(damping, jax.tree.leaves(params)[0].dtype))

    def update(
        grads: Params,
        state: TruncatedNewtonState,
        params: Params,
        *,
        value: Array,
        value_fn: Any,
        model: Any,
        batch: Any,
        **_: Any,
    ) -> tuple[Params, TruncatedNewtonState]:
        def damped(vector: Params) -> Params:
            curved = gauss_newton_vector_product(model, params, batch, vector)
            return cast(Params, optax.tree.add_scale(curved, state.damping, vector))

        downhill = optax.tree.scale(-1, grads)
        step, _info = _conjugate_gradients(damped, downhill, maxiter=iterations)
        promised = optax.tree.vdot(downhill, step) / 2  # cg's step has dᵀ(G + μI)d = -∇Eᵀd
        fall = value - value_fn(optax.tree.add(params, step))
        seen = value + promised > value  # less is lost in rounding
        kept = jnp.where(seen, fall / jnp.where(seen, promised, 1), 1)
        factor = jnp.where(kept > 0.75, 1 / 3, jnp.where(kept > 0.25, 1.0, 4.0))
        step = jax.tree.map(lambda leaf: jnp.where(fall > 0, leaf, 0), step)
        trust = jnp.clip(state.damping * factor, *_DAMPING)
        return step, TruncatedNewtonState(trust.astype(state.damping.dtype))

    return optax.GradientTransformationExtraArgs(initial, update)


def nonlinear_cg(
    method: str = "fletcher_reeves", *, rtol: float = 1e-8, atol: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Nonlinear conjugate gradients with a backtracking line search.

    method: how the last direction is carried on.  "fletcher_reeves" (1964) gets far in few steps,
        and may crawl in the end, where "polak_ribiere" (1969) does not; "hestenes_stiefel" and
        "dai_yuan" are there too.
    rtol, atol: relative and absolute tolerance; the search ends where both are met.

    The search halves the step until the objective has fallen by a ten-thousandth of what the slope
    promises (Nocedal and Wright 2006, section 3.1).  A step of the transformation is one evaluation
    of the objective, and of its gradient where the search accepts the point; in between the
    parameters stay where they are.

    By optimistix, an extra: ``pip install 'jaxbp[batch]'``.  Raises ValueError for another method.
    """
    if method not in _CARRIED_ON:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(_CARRIED_ON)}")
    optimistix = _optimistix()
    search = optimistix.BacktrackingArmijo(decrease_factor=0.5, slope=1e-4)
    carried_on = getattr(optimistix, method)
    return _one_step_an_update(optimistix.NonlinearCG(rtol, atol, method=carried_on, search=search))


def bfgs(*, rtol: float = 1e-8, atol: float = 1e-8) -> optax.GradientTransformationExtraArgs:
    """Broyden, Fletcher, Goldfarb and Shanno (1970), the inverse Hessian kept as a matrix.

    That is the number of parameters squared: for small networks; ``optax.lbfgs`` is for the others.
    Its steps are those of ``nonlinear_cg``.  By optimistix, an extra: ``jaxbp[batch]``.
    """
    return _one_step_an_update(_optimistix().BFGS(rtol, atol))


def _one_step_an_update(solver: Any) -> optax.GradientTransformationExtraArgs:
    """An optimistix minimiser as an optax transformation: one of its steps an update."""

    def initial(params: Params) -> MinimiserState:
        loss = jax.eval_shape(jnp.zeros_like, jax.tree.leaves(params)[0][0, 0])
        return MinimiserState(solver.init(None, params, None, {}, loss, None, frozenset()))

    def update(
        grads: Params, state: MinimiserState, params: Params, *, value_fn: Any, **_: Any
    ) -> tuple[Params, MinimiserState]:
        def objective(params: Params, _: None) -> tuple[Array, None]:
            return value_fn(params), None

        point, after, _ = solver.step(objective, params, None, {}, state.inner, frozenset())
        done = state.inner.terminate
        step = jax.tree.map(lambda a, b: jnp.where(done, 0, a - b), point, params)
        after = jax.tree.map(lambda a, b: jnp.where(done, b, a), after, state.inner)
        return step, MinimiserState(after)

    return optax.GradientTransformationExtraArgs(initial, update)


def _optimistix() -> Any:
    try:
        return importlib.import_module("optimistix")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "conjugate gradients and BFGS need optimistix: pip install 'jaxbp[batch]'",
            name="optimistix",
        ) from error
