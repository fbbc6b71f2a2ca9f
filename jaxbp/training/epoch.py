"""An epoch: every row of the data once, as one compiled program over minibatches.

The data live on the device, so that between two steps there is nothing but arithmetic.  Minibatch,
full batch (``batch_size=None``) and online learning (``batch_size=1``) are the same function.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike

from jaxbp.diagnostics.health import Health, layer_health, sample
from jaxbp.gradient import Batch, Gradient, backprop
from jaxbp.initialisation import draw, schemes_of
from jaxbp.model import MLP, Layer, Params, penalty, with_penalty
from jaxbp.parallel import split, whole
from jaxbp.precision import matmul_precision
from jaxbp.same_program import compiled_for_each
from jaxbp.training.constants import Constants, Optimizer, with_l2, with_those_taken
from jaxbp.trees import shaped

Carry = tuple[Params, optax.OptState]

_OBSERVED = 256  # rows that the health of the layers is measured on: a small part of most epochs


def initial_params(
    key: Array,
    model: MLP,
    *,
    scheme: str | None = None,
    bias: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """``init`` as one program, compiled for sizes and schemes alone."""
    program = _drawn((model.sizes, schemes_of(model, scheme), jnp.dtype(dtype)))
    with jax.transfer_guard("allow"):  # of a number
        drawn: Params = program(key, bias)
    return drawn


def _draw(of: Any, key: Array, bias: ArrayLike) -> Params:
    sizes, schemes, dtype = of
    return draw(sizes, schemes, dtype, key, bias)


_drawn = compiled_for_each(_draw, runs_once=True)


def shapes_of(model: MLP, dtype: DTypeLike) -> Params:
    """The shapes of the parameters that ``init`` draws."""
    return tuple(
        Layer(shaped((o, i), dtype), shaped((o,), dtype)) for i, o in pairwise(model.sizes)
    )


class Program(NamedTuple):
    """All that an epoch is compiled for: hashable."""

    model: MLP
    optimizer: Any  # optax's, or an ``Optimizer`` that makes it of ``Constants``
    gradient: Gradient
    batch_size: int | None  # None: all rows in one step
    diagnostics: bool = False  # whether the epoch ends with the health of every layer
    precision: str | None = None  # of products, by JAX's name; None: the caller's
    kernel: Any = None  # a OneKernel takes the minibatches; None: a compiled scan does
    mesh: Mesh | None = None  # of the devices that a step is split over; None: there is one

    def given(self, constants: Constants) -> "Program":
        """The program with these numbers, which may be under trace."""
        model, optimizer = with_l2(self.model, constants.l2), self.optimizer(constants)
        return self._replace(model=model, optimizer=optimizer)


def one_epoch(
    program: Program,
    params: Params,
    state: optax.OptState,
    batch: Batch,
    order: Array | None,
    key: Array | None,
) -> tuple[Params, optax.OptState, Array, Health | None]:
    """Take every row of batch once, in minibatches -> (params, state, mean loss, health).

    program: the model, its optimiser and gradient, and the size of a minibatch.
    params: what the epoch starts from; not donated, a diverging epoch falls back to them.
    state: of the optimiser.
    batch: all N rows, on the device; example weights are relative to their mean.
    order: (N,) int32 row numbers, or those of some rows; None for a full batch of all.
    key: of this epoch, for a random gradient; else None.

    The last minibatch holds the rows that are left over.  The mean loss is that of the steps, each
    before its update; it is NaN where a new parameter is not finite.
    """
    batch_size = program.batch_size

    def minibatch_step(carry: Carry, minibatch: Any) -> tuple[Carry, Array]:
        rows, number = minibatch
        if program.mesh is not None:
            rows = whole(rows, program.mesh)
        examples = batch if rows is None else jax.tree.map(lambda array: array[rows], batch)
        return taken(program, carry, examples, number, key)

    before, carry = params, (params, state)
    if order is None or batch_size is None:
        (params, state), loss = minibatch_step(carry, (order, 0))
    elif program.kernel is not None:
        (params, state), loss = program.kernel(program, carry, batch, order)
    else:
        last = order.size % batch_size  # rows of the ragged last minibatch, a step of its own size
        if program.diagnostics and last == 0:
            last = batch_size  # the last step apart, to see its update
        full = order[: order.size - last].reshape(-1, batch_size)
        numbers = jnp.arange(len(full), dtype=jnp.int32)
        carry, losses = jax.lax.scan(minibatch_step, carry, (full, numbers))
        total = batch_size * jnp.sum(losses)
        if last:
            before, _ = carry
            carry, last_loss = minibatch_step(carry, (order[-last:], len(full)))
            total = total + last * last_loss
        (params, state), loss = carry, total / order.size
    health = None
    if program.diagnostics:
        updates = jax.tree.map(jnp.subtract, params, before)
        with matmul_precision(program.precision):
            rows = in_dtype_of(params, sample(batch, _OBSERVED))
            health = layer_health(program.model, params, rows, updates)
    finite = jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)])
    return params, state, jnp.where(jnp.all(finite), loss, jnp.nan), health


def taken(
    program: Program, carry: Carry, examples: Batch, number: ArrayLike, key: Array | None
) -> tuple[Carry, Array]:
    """Take one minibatch -> (parameters and state after it, its loss before).

    program: the model, its optimiser and gradient, and the mesh that its rows are split over.
    carry: parameters and state before it.
    examples: of the minibatch; their weights count relative to 1.
    number: of the step in its epoch, from 0.
    key: of the epoch, for a random gradient; else None.
    """
    gradient = program.gradient
    if program.mesh is not None:
        gradient = split(gradient, program.mesh)
    if key is not None:
        gradient = partial(gradient, key=jax.random.fold_in(key, number))
    if examples.weight is not None:
        gradient = times_mean_weight(gradient)
    with matmul_precision(program.precision):
        step = make_step(program.model, program.optimizer, gradient)
        return step(carry, in_dtype_of(carry[0], examples))


def in_dtype_of(params: Params, batch: Batch) -> Batch:
    """A minibatch for a gradient, whose x is held in another dtype where that is smaller."""
    return batch._replace(x=batch.x.astype(params[0].weight.dtype))


def epochs_of(
    program: Program,
    params: Params,
    state: optax.OptState,
    before: Params,
    batch: Batch,
    orders: Array | None,
    first: Array,
    count: Array,
    key: Array | None,
    constants: Constants,
    *,
    block: int,
) -> tuple[Params, optax.OptState, Params, Array, Health | None]:
    """Take some epochs, at most a block -> (params, state, before, mean losses, healths).

    program: without its constants.
    params, state: what the first of these epochs starts from.
    before: what the last epoch started from, if there was one.
    batch: all N rows, on the device.
    orders: (block, N) of the epochs; None for full batches.
    first: number of the first of these epochs, from 1.
    count: how many they are.
    key: of the training, for a random gradient; else None.
    constants: of the program.
    block: how many they are at most.

    Losses and healths have the epochs in front, (block, ...).  After a loss that is not finite the
    parameters, the state and before stay those of the last epoch that was; but a block of one gives
    what its epoch does, and holds no further copy of the parameters.
    """
    given, dtype = program.given(constants), params[0].weight.dtype

    def epoch(place: Array | int, params: Params, state: optax.OptState) -> Any:
        order = None if orders is None else orders[place]
        of_epoch = None if key is None else epoch_key(key, first + place)
        return one_epoch(given, params, state, batch, order, of_epoch)

    def held_epoch(place: Array, held: Any) -> Any:
        params, state, before, finite = held
        *after, loss, health = epoch(place, params, state)
        finite &= jnp.isfinite(loss)
        kept = jax.tree.map(partial(jnp.where, finite), (*after, params), (params, state, before))
        return (*kept, finite), (loss, health)

    if block == 1:
        *after, loss, health = epoch(0, params, state)
        return (*after, params, *jax.tree.map(lambda each: each[None], (loss, health)))
    health = Health(*[jnp.zeros((block, len(params)), dtype)] * len(Health._fields))
    empty = jnp.zeros(block, dtype), health if program.diagnostics else None
    held = params, state, before, jnp.array(True)
    (*kept, _), records = repeated(held_epoch, held, empty, count)
    return (*kept, *records)


def repeated(
    epoch: Callable[[Array, Any], tuple[Any, Any]], held: Any, empty: Any, count: Array
) -> tuple[Any, Any]:
    """Do an epoch count times -> what is held at the end, and the records of all.

    epoch: (place, held) -> (held, record), place from 0.
    held: at the start.
    empty: as many records as there may be at most, of zeros.
    count: not known when it is compiled.
    """

    def step(place: Array, both: tuple[Any, Any]) -> tuple[Any, Any]:
        held, records = both
        held, record = epoch(place, held)
        return held, jax.tree.map(lambda all, one: all.at[place].set(one), records, record)

    ended: tuple[Any, Any] = jax.lax.fori_loop(0, count, step, (held, empty))
    return ended


run_epochs = compiled_for_each(epochs_of, donate_argnums=1, static_argnames="block")


def make_step(
    model: MLP, optimizer: optax.GradientTransformation, gradient: Gradient = backprop
) -> Callable[[Carry, Batch], tuple[Carry, Array]]:
    """Step 5, update: ``(params, state), batch -> (params, state), loss``, a ``lax.scan``'s body.

    state starts as ``optimizer.init(params)``.  The plain rule is w ← w - η ∂L/∂w, which is
    ``optax.sgd``; any optax optimiser will do.  Its ``update`` is given the objective as
    ``value_fn``, with the derivative that ``gradient`` claims, for line searches (``optax.lbfgs``),
    the gradient as ``grad_fn``, for ``optax.contrib.sam``, and ``model`` and ``batch``, for methods
    that ask the backward pass for more.
    """
    update = with_those_taken(optimizer)

    def step(carry: Carry, batch: Batch) -> tuple[Carry, Array]:
        params, state = carry
        loss, grads = gradient(model, params, batch)
        objective = _differentiable(lambda params: gradient(model, params, batch))
        updates, state = update(
            grads,
            state,
            params,
            value=loss,
            grad=grads,
            value_fn=lambda params, model=None, batch=None, grad_fn=None: objective(params),
            model=model,  # optax hands on to value_fn what its parameters name
            batch=batch,
            grad_fn=lambda params, number=0: gradient(model, params, batch)[1],
        )
        return (optax.apply_updates(params, updates), state), loss

    return step


def orders_of(key: Array, rows: int, first: int, count: int, block: int) -> Array:
    """The orders (block, rows) of the epochs first, first + 1, ..., of which count matter.

    On a CPU they are drawn by the host, because ``jax.random``'s permutation costs as much as many
    steps there.
    """
    if draws_on_device():
        drawn: Array = _drawn_block(key, jax.device_put(np.int32(first)), rows, block)
        return drawn
    seed = np.asarray(jax.random.key_data(key)).tolist()
    orders = np.zeros((block, rows), np.int32)
    for place in range(count):
        orders[place] = shuffled_rows(seed, first + place, rows)
    on_device: Array = jax.device_put(orders)
    return on_device


def draws_on_device() -> bool:
    """Whether orders are drawn on the device, by ``drawn_rows``, or on the host."""
    return jax.default_backend() != "cpu"


def shuffled_rows(seed: Sequence[int], epoch: int, rows: int) -> np.ndarray:
    """The order (rows,) of an epoch, by the host: a function of seed and epoch alone."""
    return np.random.default_rng([*seed, epoch]).permutation(rows).astype(np.int32)


def drawn_rows(key: Array, epoch: ArrayLike, rows: int) -> Array:
    """The order (rows,) of an epoch, by the device: a function of key and epoch alone."""
    order_key = jax.random.fold_in(epoch_key(key, epoch), rows)  # n, n < rows, is step n's
    return jax.random.permutation(order_key, rows).astype(jnp.int32)


def epoch_key(key: Array, epoch: ArrayLike) -> Array:
    """The key of an epoch, whose fold n is that of step n.

    The first folds of key itself are the layers' (``jax.random.split(key, L)[n]`` is
    ``fold_in(key, n)``), and the initial weights are drawn from them; so the epochs' are folds of
    its last one, which no network has the layers to reach.
    """
    with jax.transfer_guard("allow"):  # of two numbers
        return jax.random.fold_in(jax.random.fold_in(key, np.uint32(2**32 - 1)), epoch)


@partial(jax.jit, static_argnums=(2, 3))
def _drawn_block(key: Array, first: Array, rows: int, block: int) -> Array:
    numbers = first + jnp.arange(block)
    orders: Array = mapped(key)(lambda number: drawn_rows(key, number, rows), numbers)
    return orders


def mapped(key: Array) -> Callable[[Callable[[Array], Any], Array], Any]:
    """``map(f, values)`` for an f that draws from keys as this one.

    It is ``jax.vmap`` where that draws the numbers that f draws alone, as by JAX's default keys; by
    "rbg" it would draw others.
    """
    if "threefry" in str(jax.random.key_impl(key)):
        return lambda function, values: jax.vmap(function)(values)
    return jax.lax.map


def state_of(optimizer: Optimizer, params: Params, constants: Constants) -> optax.OptState:
    """The optimiser's state; it shares no buffer with params or itself, as it will be donated."""
    return jax.tree.map(jnp.copy, optimizer(constants).init(params))


initial_state = compiled_for_each(state_of, runs_once=True)


@dataclass(frozen=True)
class RandomGradient:
    """A gradient that is declared to draw at random."""

    fn: Gradient

    def __call__(
        self, model: MLP, params: Params, batch: Batch, *, key: Array
    ) -> tuple[Array, Params]:
        """The loss and the gradient, drawn with a key."""
        return self.fn(model, params, batch, key=key)


def random_gradient(fn: Gradient) -> RandomGradient:
    """Declare that a gradient draws at random: ``fit`` then gives it another key at every step.

    fn is called as ``fn(model, params, batch, key=key)``.  A gradient with a parameter named
    ``key`` needs no declaration; this one is for functions that take it among ``**keywords``.

    >>> import jaxbp
    >>> def noisy(model, params, batch, **keywords):
    ...     return jaxbp.noisy_clipped_gradient(
    ...         model, params, batch, max_norm=1.0, noise_multiplier=1.0, **keywords)
    >>> is_random(noisy), is_random(random_gradient(noisy))
    (False, True)
    """
    return RandomGradient(fn)


def is_random(gradient: Gradient) -> bool:
    """Whether a gradient takes a key: it is declared to, or has a parameter of that name.

    A function decorated by ``functools.wraps`` takes one if it hands on keywords to one that does.
    Raises ValueError where the key is set already, because every step would draw the same, and
    TypeError for what is no function.
    """
    if not callable(gradient):
        raise TypeError(f"gradient: got {gradient!r}, expected a function such as jaxbp.backprop")
    if isinstance(gradient, partial) and "key" in gradient.keywords:
        raise ValueError(
            "gradient: its key is set, and every step would draw the same; expected one without, "
            "as fit gives it a key of its own at every step"
        )
    try:
        own = inspect.signature(gradient, follow_wrapped=False).parameters
        wrapped = inspect.signature(gradient).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return False
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values())
    return "key" in own or (hands_on and "key" in wrapped)


def times_mean_weight(gradient: Gradient) -> Gradient:
    """The examples' part of gradient times the minibatch's mean weight, and the penalty's once.

    So minibatches average to the whole: otherwise a heavy example would not count for more in a
    minibatch of its own.  Noise for privacy is multiplied with the examples' part, as what one
    example can move is.
    """

    def weighted(model: MLP, params: Params, batch: Batch) -> tuple[Array, Params]:
        loss, grads = gradient(model._replace(l2=0.0), params, batch)
        weight = jnp.mean(jnp.asarray(batch.weight))
        grads = jax.tree.map(lambda grad: weight * grad, grads)
        return weight * loss + penalty(model, params), with_penalty(model, params, grads)

    return weighted


def _differentiable(
    gradient: Callable[[Params], tuple[Array, Params]],
) -> Callable[[Params], Array]:
    """The objective as a function whose derivative, wherever JAX asks for it, is gradient's."""

    @jax.custom_jvp
    def value(params: Params) -> Array:
        return gradient(params)[0]

    @value.defjvp
    def slope(primals: tuple[Params], tangents: tuple[Params]) -> tuple[Array, Array]:
        loss, grads = gradient(*primals)
        return loss, optax.tree.vdot(grads, tangents[0])

    return value
