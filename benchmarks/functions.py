"""Is the checker right on hundreds of functions of JAX and optax, at their special points too?

    python -m benchmarks.functions [--output results.json] [--short | --quick] [--only NAME ...]
    python -m benchmarks.functions --table results.json

Each function is checked at an ordinary point and at its special ones (0, 1, ties, ends of the
domain), in float64 and in float32, with three claimed gradients: that of ``jax.grad``, which must
not fail; that with one leaf 1 % too large; and that with one term lost, as one operand of f's jaxpr
passes no gradient on.  The last two must not pass.

The file reads from top to bottom: the points, the functions, what is known of their gradients, the
three claims, and the check.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Literal

from benchmarks import protocol
from jaxbp import gradcheck

CLAIMS = ("right", "scaled", "lost")
DTYPES = ("float64", "float32")
WRONG = "WRONG"  # behind a verdict that is
NOISE = 100  # units in the last place of φ: what is below is rounding, and no term
VISIBLE = 0.01  # a lost term changes some leaf of the gradient by this share of its size at least
OPERANDS = 40  # at most so many are tried as lost terms
NEIGHBOURS = 64  # points around a kink, whose slopes are the subgradients there
SPECIAL, STATS = "jax.scipy.special", "jax.scipy.stats"

# Points: the arguments of a function, by the name of the point

Points = Mapping[str, tuple[Any, ...]]


def points(*ordinary: Any, **special: Any) -> Points:
    """An ordinary point, and special ones: other arguments, or another first entry of the first."""
    first, *rest = ordinary
    made: dict[str, tuple[Any, ...]] = {"ordinary": ordinary}
    for name, value in special.items():
        if isinstance(value, tuple):
            made[name] = value
        else:
            made[name] = ([value, *first[1:]], *rest)
    return {name: tuple(map(np.asarray, args)) for name, args in made.items()}


def numbers(*shape: int, seed: int = 0, low: float = -1.5, high: float = 1.5) -> np.ndarray:
    """Uniform random numbers of few digits, all different and none of them 0."""
    return np.round(np.random.default_rng(seed).uniform(low, high, shape), 3)


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    return numbers(*shape, seed=seed, low=0.3, high=2.5)


def symmetric(n: int, shift: float = 0.0) -> np.ndarray:
    half = numbers(n, n, seed=5)
    return (half + half.T) / 2 + shift * np.eye(n)


V, W = [-0.7, 0.4, 1.3], [0.9, -1.1, 0.6]
LINE = points(V, zero=0.0, one=1.0, minus_one=-1.0, large=30.0)
UNITS = points(V, zero=0.0, one=1.0, minus_one=-1.0, three=3.0, minus_three=-3.0, six=6.0)
POSITIVE = points([0.7, 0.4, 1.3], one=1.0, two=2.0, small=1e-3, zero=0.0)
ABOVE_ONE = points([1.7, 2.4, 1.3], one=1.0, two=2.0)
INSIDE = points([-0.7, 0.4, 0.1], zero=0.0, one=1.0, minus_one=-1.0)
UNIT = points([0.7, 0.4, 0.1], half=0.5, zero=0.0, one=1.0)
TWO = points(V, W, ties=([-0.7, 0.4, 0.6], [0.9, 0.4, 0.6]), zero=0.0, zeros=([0.0, 1], [0.0, 1]))
POWERS = points(
    [0.7, 2.4, 1.3],
    W,
    zero_one=([0.0, 0.5], [1.0, 2]),
    zero_two=([0.0, 0.5], [2.0, 1]),
    zero_zero=([0.0, 0.5], [0.0, 1]),
    one=([1.0, 1.5], [0.5, 0.0]),
)
BOTH_POSITIVE = points(
    [0.7, 2.4], [1.2, 0.6], ones=([1.0, 2.4], [1.0, 0.6]), ties=([0.7, 2.0], [0.7, 2.0])
)
FRACTIONS = points([0.2, 1.3], [0.7, 0.6], zero=0.0, ones=([1.0, 2.0], [1.0, 2.0]))
VECTOR = points(
    numbers(5),
    zero=([0.0, 0.4, -0.3, 1.1, 0.8],),
    ties=([0.4, 1.1, 0.4, 1.1, 0.2],),
    zeros=(np.zeros(4),),
    ones=(np.ones(4),),
)
TRIPLES = points([0.3, -0.8, 1.2], W, zeros=([0.0, 0, 0], W), equal=(W, W))
LOCATIONS = points(V, W, [0.7, 1.2, 2.0], mean=(V, V, [0.7, 1.2, 2.0]))
THREE_POSITIVE = points([0.7, 2.4], [1.2, 0.6], [0.5, 0.9], ones=([0.7, 2.4], [1.0, 1], [1.0, 0.9]))
EDGES = points([1.0, 0.4], [0.0, 0.3], minus=([0.0, 0.4], [1.0, 0.3]))
VECTORS = points(numbers(4), numbers(4, seed=1), zeros=(np.zeros(4), numbers(4)), equal=(V, V))
MATRIX = points(
    numbers(3, 4), zeros=(np.zeros((3, 4)),), ties=(np.array([[1.0, 2, 2], [2, 1, 0]]),)
)
MATRICES = points(numbers(3, 3), numbers(3, 3, seed=1), identity=(np.eye(3), numbers(3, 3)))
SQUARE = points(
    numbers(3, 3, seed=2) + np.eye(3),
    identity=(np.eye(3),),
    diagonal=(np.diag([1.0, 2, 3]),),
    symmetric=(symmetric(3),),
    singular=(np.array([[1.0, 2], [2, 4]]),),
)
DEFINITE = points(symmetric(3, 3.0), identity=(np.eye(3),), diagonal=(np.diag([1.0, 2, 4]),))
SYSTEM = points(
    symmetric(3, 3.0),
    numbers(3),
    identity=(np.eye(3), numbers(3)),
    zeros=(2 * np.eye(3), np.zeros(3)),
)
COUNTS = points([2, 0, 3], [1.7, 0.4, 1.2], one=([0, 1], [1.0, 1.0]))
TRIALS = points([2, 0, 3], [5, 2, 3], [0.7, 0.4, 0.2], half=([1, 2], [2, 2], [0.5, 0.5]))
LABELS = points(numbers(3, 4), np.eye(4)[[2, 0, 1]], zeros=(np.zeros((2, 3)), np.eye(3)[[2, 0]]))
CLASSES = points(
    numbers(3, 4), np.array([2, 0, 1]), ties=(np.array([[1.0, 1, 0], [0, 2, 2]]), np.array([1, 0]))
)
PAIRS = points(numbers(4, 3), np.array([0, 1, 0, 1]), ties=(np.ones((2, 3)), np.array([1, 1])))
SIGNS = points(numbers(4), np.array([1.0, -1, -1, 1]), one=([1.0, -1], np.array([1.0, -1])))
BINARY = points(numbers(4), np.array([1.0, 0, 0, 1]), zero=(np.zeros(3), np.array([1.0, 0, 1])))
DISTRIBUTIONS = points(
    np.log([[0.2, 0.3, 0.5]]), np.array([[0.5, 0.1, 0.4]]), zero=(np.log([[0.2, 0.8]]), [[0.0, 1]])
)

# Functions: at which points, in which module, which names; or expressions of x, y, z, the arguments
# in order.  Integers among the arguments are held.

TABLE: dict[str, list[tuple[Points, str, str]]] = {
    "jax.numpy, by entry": [
        (
            LINE,
            "jnp",
            """sin cos tan sinh cosh tanh arctan arcsinh exp exp2 expm1 square negative abs fabs
            cbrt sinc sign floor ceil trunc rint round deg2rad rad2deg i0 nan_to_num positive real
            jnp.clip(x,-1,1) jnp.where(x>0,x,-2*x) jnp.where(x==0,1,jnp.sin(x))
            jnp.select([x<0,x<1],[x,x**2],3*x) jnp.piecewise(x,[x<0,x>=0],[jnp.negative,jnp.square])
            jnp.interp(x,jnp.arange(-2.,4),jnp.sin(jnp.arange(-2.,4)))""",
        ),
        (
            POSITIVE,
            "jnp",
            """log log2 log10 log1p sqrt reciprocal x**3 x**0.5 x**-2 x**1 jnp.modf(x)[0]
            jnp.ldexp(x,3)""",
        ),
        (ABOVE_ONE, "jnp", "arccosh"),
        (INSIDE, "jnp", "arcsin arccos arctanh"),
        (
            TWO,
            "jnp",
            """add subtract multiply maximum minimum fmax fmin hypot arctan2 logaddexp logaddexp2
            copysign heaviside divide remainder fmod floor_divide jnp.polyval(y,x)""",
        ),
        (POWERS, "jnp", "power float_power"),
    ],
    "jax.numpy, arrays": [
        (
            VECTOR,
            "jnp",
            """sum mean prod max min amax amin median var std ptp nansum nanmean nanprod nanmax
            nanmin nanvar nanstd nanmedian cumsum cumprod nancumsum nancumprod sort diff ediff1d
            gradient
            trapezoid flip ravel diag vander unwrap atleast_2d diagflat average
            jnp.sum(x**2) jnp.std(x,ddof=1) jnp.quantile(x,.3) jnp.percentile(x,75.) jnp.roll(x,2)
            jnp.partition(x,2) jnp.tile(x,2) jnp.repeat(x,2) jnp.pad(x,1) jnp.pad(x,2,'edge')
            jnp.take(x,jnp.array([2,0,2])) jnp.take_along_axis(x,jnp.argsort(x),0) jnp.delete(x,1)
            jnp.insert(x,1,x[0]) jnp.polyder(x) jnp.polyint(x) jnp.argsort(x)*x jnp.append(x,2)
            jnp.concatenate([x,x**2]) jnp.stack([x,jnp.sin(x)]) jnp.split(x[:4],2)
            x.at[1].set(3.) x.at[1].add(x[0]) x.at[1].mul(x[0]) x.at[2].max(x[0])
            jax.lax.top_k(x,2)[0] jax.lax.cumlogsumexp(x) jax.lax.cummax(x) jax.lax.cummin(x)
            jnp.abs(jnp.fft.fft(x))**2 jnp.fft.fft(x) jnp.fft.ifft(x) jnp.fft.rfft(x)
            jnp.fft.irfft(x) jnp.fft.fftshift(x) jnp.fft.hfft(x)""",
        ),
        (
            TRIPLES,
            "jnp",
            """dot vdot inner outer convolve correlate polyadd polymul polysub kron cross vecdot
            jnp.linalg.outer(x,y)""",
        ),
        (
            MATRICES,
            "jnp",
            """matmul tensordot matvec vecmat jnp.vstack([x,y]) jnp.hstack([x,y])
            jnp.einsum('ij,jk->ik',x,y) jnp.einsum('ij,ij',x,y) jnp.einsum('ii,jj',x,y)""",
        ),
        (
            MATRIX,
            "jnp",
            """transpose tril triu diagonal trace rot90 fliplr flipud cov corrcoef
            jnp.sum(x,0) jnp.max(x,1) jnp.min(x,0) jnp.mean(x,1) jnp.prod(x,0) jnp.var(x,1)
            jnp.std(x,0) jnp.sort(x,0) jnp.swapaxes(x,0,1) jnp.reshape(x,-1) jnp.cumprod(x,1)
            jnp.median(x,0) jnp.fft.fft2(x) jnp.squeeze(x[:1]) jnp.moveaxis(x,0,1) x[:,::2]""",
        ),
    ],
    "jax.nn": [
        (
            UNITS,
            "jax.nn",
            """relu relu6 sigmoid softplus soft_sign silu log_sigmoid elu selu celu gelu leaky_relu
            hard_tanh hard_sigmoid hard_silu mish squareplus sparse_plus sparse_sigmoid tanh
            jax.nn.gelu(x,approximate=False) jax.nn.leaky_relu(x,.2) jax.nn.elu(x,.5)""",
        ),
        (POSITIVE, "jax.nn", "log1mexp"),
        (
            VECTOR,
            "jax.nn",
            """softmax log_softmax logsumexp logmeanexp standardize jax.nn.glu(x[:4])
            jax.nn.softmax(x,where=x>0)""",
        ),
        (points(numbers(4), far=([300.0, -300, 2, 300],)), "jax.nn", "softmax logsumexp"),
        (
            MATRICES,
            "jax.nn",
            "jax.nn.dot_product_attention(x[None,:,None],y[None,:,None],y[None,:,None])",
        ),
    ],
    "jax.scipy.special": [
        (LINE, SPECIAL, "erf erfc expit ndtr log_ndtr i0 i0e i1 i1e erfcx dawsn fresnel sici"),
        (
            POSITIVE,
            SPECIAL,
            """gammaln gamma digamma entr exp1 expi spence factorial loggamma
            jax.scipy.special.polygamma(1,x) jax.scipy.special.zeta(x+1.5,1.)
            jax.scipy.special.expn(2,x) jax.scipy.special.multigammaln(x+1,2)
            jax.scipy.special.bessel_jn(x[0],v=3)""",
        ),
        (INSIDE, SPECIAL, "erfinv"),
        (UNIT, SPECIAL, "logit ndtri erfcinv jax.scipy.special.betainc(1.5,2.5,x)"),
        (
            BOTH_POSITIVE,
            SPECIAL,
            """xlogy xlog1py rel_entr kl_div betaln beta gammainc gammaincc poch boxcox boxcox1p
            jax.scipy.special.hyp1f1(x,y,.5) jax.scipy.special.hyp2f1(x,y,2.,.3)""",
        ),
        (FRACTIONS, SPECIAL, "xlogy xlog1py rel_entr kl_div"),
        (VECTORS, SPECIAL, "jax.scipy.special.logsumexp(x,b=y)"),
        (TWO, SPECIAL, "owens_t"),
    ],
    "jax.scipy.stats": [
        (
            LINE,
            STATS,
            """norm.logpdf norm.pdf norm.cdf norm.logcdf norm.sf norm.logsf logistic.logpdf
            logistic.cdf logistic.sf laplace.logpdf laplace.pdf laplace.cdf cauchy.logpdf cauchy.cdf
            cauchy.logcdf gumbel_l.logpdf gumbel_l.cdf gumbel_r.logpdf gumbel_r.logcdf
            gumbel_r.sf""",
        ),
        (POSITIVE, STATS, "expon.logpdf expon.cdf expon.logsf"),
        (
            UNIT,
            STATS,
            """norm.ppf norm.isf logistic.ppf cauchy.ppf expon.ppf uniform.ppf
            jax.scipy.stats.bernoulli.logpmf(jnp.array([1,0,1]),x)
            jax.scipy.stats.geom.logpmf(jnp.array([1,2,3]),x)
            jax.scipy.stats.beta.cdf(x,1.5,2.5)""",
        ),
        (
            BOTH_POSITIVE,
            STATS,
            """t.logpdf gamma.logpdf gamma.cdf gamma.logsf chi2.logpdf chi2.cdf gennorm.logpdf
            vonmises.logpdf jax.scipy.stats.wrapcauchy.logpdf(x,.3*y)
            jax.scipy.stats.pareto.logpdf(x+1,y) jax.scipy.stats.pareto.cdf(x+1,y)
            jax.scipy.stats.dirichlet.logpdf(y/jnp.sum(y),x)""",
        ),
        (LOCATIONS, STATS, "norm.logpdf laplace.logpdf"),
        (
            THREE_POSITIVE,
            STATS,
            "jax.scipy.stats.beta.logpdf(.3*x,y,z)",
        ),
        (TWO, STATS, "jax.scipy.stats.truncnorm.logpdf(x,y-4,y+2)"),
        (COUNTS, STATS, "poisson.logpmf poisson.pmf"),
        (TRIALS, STATS, "binom.logpmf nbinom.logpmf"),
        (SYSTEM, STATS, "jax.scipy.stats.multivariate_normal.logpdf(y,jnp.zeros(y.size),x)"),
        (VECTOR, STATS, "sem jax.scipy.stats.gaussian_kde(x).evaluate(jnp.array([.1,.2]))"),
    ],
    "linalg": [
        (
            SQUARE,
            "jnp.linalg",
            """det inv slogdet pinv svdvals cond norm matrix_norm qr jnp.linalg.norm(x,2)
            jnp.linalg.norm(x,1) jnp.linalg.norm(x,jnp.inf) jnp.linalg.norm(x,'nuc')
            jnp.linalg.matrix_power(x,3) jnp.linalg.matrix_power(x,-2) jnp.abs(jnp.linalg.svd(x)[0])
            jax.scipy.linalg.expm(x) jax.scipy.linalg.lu(x) jax.scipy.linalg.det(x)
            jax.scipy.linalg.inv(x)""",
        ),
        (
            DEFINITE,
            "jnp.linalg",
            """cholesky eigvalsh jnp.linalg.eigh(x)[0] jnp.linalg.eigh(x)[1]**2
            jax.scipy.linalg.cholesky(x) jax.scipy.linalg.eigh(x,eigvals_only=True)
            jnp.log(jnp.linalg.det(x))""",
        ),
        (
            SYSTEM,
            "jnp.linalg",
            """solve jnp.linalg.lstsq(x,y)[0] y@jnp.linalg.solve(x,y)
            jax.scipy.linalg.solve(x,y,assume_a='pos') jax.scipy.linalg.solve_triangular(x,y)
            jax.scipy.linalg.cho_solve((x,True),y)""",
        ),
        (
            VECTOR,
            "jnp.linalg",
            """norm vector_norm jnp.linalg.norm(x,1) jnp.linalg.norm(x,jnp.inf) jnp.linalg.norm(x,3)
            jax.scipy.linalg.toeplitz(x) jax.scipy.linalg.circulant(x)
            jax.scipy.linalg.hankel(x)""",
        ),
        (
            MATRICES,
            "jnp.linalg",
            """matmul tensordot vecdot jnp.linalg.multi_dot([x,y,x])
            jax.scipy.linalg.block_diag(x,y)""",
        ),
    ],
    "optax.losses": [
        (
            VECTORS,
            "optax.losses",
            """squared_error l2_loss huber_loss log_cosh cosine_similarity cosine_distance""",
        ),
        (EDGES, "optax.losses", "huber_loss"),
        (SIGNS, "optax.losses", "hinge_loss perceptron_loss"),
        (
            BINARY,
            "optax.losses",
            "sigmoid_binary_cross_entropy sigmoid_focal_loss binary_dice_loss sparsemax_loss",
        ),
        (
            LABELS,
            "optax.losses",
            """softmax_cross_entropy safe_softmax_cross_entropy poly_loss_cross_entropy dice_loss
            ranking_softmax_loss multiclass_generalized_dice_loss
            optax.losses.make_fenchel_young_loss(jax.nn.logsumexp)(x,y)""",
        ),
        (
            CLASSES,
            "optax.losses",
            """softmax_cross_entropy_with_integer_labels
            jax.vmap(optax.losses.multiclass_hinge_loss)(x,y)
            jax.vmap(optax.losses.multiclass_perceptron_loss)(x,y)
            optax.losses.multiclass_sparsemax_loss(x,y)""",
        ),
        (
            DISTRIBUTIONS,
            "optax.losses",
            """kl_divergence convex_kl_divergence generalized_kl_divergence
            optax.losses.kl_divergence_with_log_targets(x,jnp.log(y))""",
        ),
        (PAIRS, "optax.losses", "ntxent"),
        (MATRICES, "optax.losses", "optax.losses.triplet_margin_loss(x,y,x*y)"),
        (MATRIX, "optax.losses", "optax.losses.smooth_labels(x,.1)"),
    ],
}


class Function(NamedTuple):
    """A function of JAX or optax, by the expression that calls it."""

    expression: str
    group: str
    points: Points

    def at(self, *args: Any) -> Any:
        """Its value."""
        names = dict(zip("xyz", args, strict=False))
        return eval(self.expression, {"jax": jax, "jnp": jnp, "optax": optax} | names)


def functions() -> list[Function]:
    """All of the table; an expression that it has twice is one function at the points of both."""
    found: dict[str, Function] = {}
    for group, lines in TABLE.items():
        for at, module, words in lines:
            names = ",".join("xyz"[: len(at["ordinary"])])
            for word in words.split():
                expression = word if set("([*@") & set(word) else f"{module}.{word}({names})"
                before = found[expression].points if expression in found else {}
                found[expression] = Function(expression, group, {**before, **at})
    return list(found.values())


# What is known: where jax.grad's finite number is not the derivative, by the points' names

#: f jumps at these points, by a comparison or a sign that LAPACK chooses, or is nothing but
#: rounding, and has no derivative: jax.grad's must not pass
JUMPS = {
    "jnp.sign(x)": "zero",
    "jnp.floor(x)": "zero one minus_one large",
    "jnp.ceil(x)": "zero one minus_one large",
    "jnp.trunc(x)": "one minus_one large",
    "jnp.modf(x)[0]": "one two",
    "jnp.heaviside(x,y)": "zero zeros",
    "jnp.remainder(x,y)": "ties zero",
    "jnp.fmod(x,y)": "ties",
    "jnp.floor_divide(x,y)": "ties zero",
    "jnp.where(x==0,1,jnp.sin(x))": "zero",
    "jnp.select([x<0,x<1],[x,x**2],3*x)": "one",
    "jnp.argsort(x)*x": "ties ones",
    "jax.nn.softmax(x,where=x>0)": "zero zeros",
    "jax.scipy.special.factorial(x)": "zero",
    "jax.scipy.special.rel_entr(x,y)": "zero",  # where the slope of x log(x) is infinite
    "jax.scipy.special.kl_div(x,y)": "zero",
    "jnp.linalg.qr(x)": "identity diagonal singular",
    "jnp.linalg.cond(x)": "singular",
    "optax.losses.sparsemax_loss(x,y)": "ordinary zero",
}

#: jax.grad is off at these points: it must fail
MISTAKES = {
    "jax.scipy.special.bessel_jn(x[0],v=3)": "small",  # -3e4, not -0.2, by a recurrence
    "jax.scipy.stats.cauchy.ppf(x)": "half",  # 0, not π, by an absolute value
    # of a matrix taken for symmetric: shared by two entries, of which the function reads one
    "jax.scipy.linalg.solve(x,y,assume_a='pos')": "ordinary identity",
    # at labels of 0 and 1, by logsumexp with weights of 0 (jax #22398)
    "optax.losses.sigmoid_focal_loss(x,y)": "ordinary zero",
}
KNOWN = (JUMPS, MISTAKES)


# The three claims: one compiled gradient, whose last argument says which is meant


def objective(function: Function) -> Callable[..., Any]:
    """φ(*args, wrong), the weighted sum of a function's results, under jit.

    It does not depend on wrong, which is for its gradient."""

    def phi(*args: Any) -> Any:
        *given, _ = args
        return weighted_sum(function.at(*given))

    return jax.jit(phi)


def weighted_sum(results: Any) -> Any:
    """The sum of a tree's entries with unequal weights; of complex ones both parts count."""

    def weighted(leaf: Any) -> Any:
        if jnp.iscomplexobj(leaf):
            return weighted(jnp.real(leaf)) + weighted(1.3 * jnp.imag(leaf))
        return jnp.sum(leaf * jnp.cos(1.0 + jnp.arange(leaf.size)).reshape(leaf.shape))

    leaves = map(jnp.asarray, jax.tree.leaves(results))
    return sum(weighted(leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, np.inexact))


def operands(jaxpr: Any) -> Iterator[tuple[Any, Any]]:
    """The places in a jaxpr where a number is used that has a gradient: (equation, variable)."""
    for equation in jaxpr.eqns:
        if called(equation) is not None:
            yield from operands(called(equation).jaxpr)
        else:
            yield from ((equation, v) for v in equation.invars if is_operand(v))


def is_operand(variable: Any) -> bool:
    return not isinstance(variable, Literal) and jnp.issubdtype(variable.aval.dtype, np.inexact)


def called(equation: Any) -> Any:
    """The closed jaxpr of an equation that is a function under jit; None of another."""
    return equation.params["jaxpr"] if equation.primitive.name in {"jit", "pjit"} else None


def run(closed: Any, args: tuple[Any, ...], stopped: Any, number: Iterator[int]) -> list[Any]:
    """A jaxpr's results, where no gradient passes through the operand of that number."""
    values = dict(zip(closed.jaxpr.invars, args, strict=True))
    values.update(zip(closed.jaxpr.constvars, closed.consts, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in closed.jaxpr.eqns:
        inputs = list(map(read, equation.invars))
        if called(equation) is not None:
            results = run(called(equation), tuple(inputs), stopped, number)
        else:
            for position, variable in enumerate(equation.invars):
                if is_operand(variable):
                    kept, lost = inputs[position], jax.lax.stop_gradient(inputs[position])
                    inputs[position] = jnp.where(stopped == next(number), lost, kept)
            parameters = equation.primitive.get_bind_params(equation.params)
            results = equation.primitive.bind(*inputs, **parameters)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return list(map(read, closed.jaxpr.outvars))


class Wrong(NamedTuple):
    """Which gradient is claimed: by how many per cent the first leaf is scaled, and which operand
    passes no gradient on; -1 is none."""

    percent: int = 100
    stopped: int = -1

    def argument(self) -> np.ndarray:
        """It as the last argument of φ and its gradient."""
        return np.array(self, np.int32)


def gradient(phi: Callable[..., Any], argnums: tuple[int, ...]) -> Callable[..., Any]:
    """The claimed gradients of φ, under jit: which, says the last argument."""

    def claimed(*args: Any) -> Any:
        *_, wrong = args

        def rewritten(*args: Any) -> Any:
            closed = jax.make_jaxpr(phi)(*args)
            return run(closed, args, wrong[1], iter(range(10**9)))[0]

        first, *rest = jax.grad(rewritten, argnums)(*args)
        return (first * (wrong[0] / 100).astype(first.dtype), *rest)

    return jax.jit(claimed)


def lost_term(
    claimed: Callable[..., Any], right: Any, args: tuple[Any, ...], count: int, noise: float
) -> Any:
    """The operand whose lost gradient changes the gradient least, but visibly; None without one."""
    sizes = []
    for operand in range(min(count, OPERANDS)):
        change = relative_change(claimed(*args, Wrong(stopped=operand).argument()), right, noise)
        if np.isfinite(change) and change > VISIBLE:
            sizes.append((change, operand))
    return min(sizes)[1] if sizes else None


def relative_change(new: Any, old: Any, noise: float) -> float:
    """The largest change of a leaf, as a share of its size, or of rounding that is larger."""
    changes = [
        np.linalg.norm(np.ravel(a) - np.ravel(b)) / max(float(np.linalg.norm(np.ravel(b))), noise)
        for a, b in zip(new, old, strict=True)
    ]
    return float(np.max(changes))


def is_subgradient(
    claim: Any, right: Callable[..., Any], args: tuple[Any, ...], argnums: Any
) -> bool:
    """Whether each entry of a claim lies between those of the gradients at points around a kink.

    At a smooth point these are all one, so that nothing but the gradient does.
    """
    rng, around = np.random.default_rng(0), []
    for _ in range(NEIGHBOURS):
        moved = list(args)
        for n in argnums:
            step = 1e-4 * rng.uniform(-1, 1, args[n].shape) * np.maximum(1, np.abs(args[n]))
            moved[n] = (args[n] + step).astype(args[n].dtype)
        around.append(right(*moved))
    for entry, entries in zip(claim, zip(*around, strict=True), strict=True):
        lower, upper = np.min(entries, 0), np.max(entries, 0)
        reach = 2e-3 * np.linalg.norm(np.maximum(np.abs(lower), np.abs(upper)))
        if not np.all((lower - reach <= entry) & (entry <= upper + reach)):
            return False
    return True


# The check


def checked(function: Function) -> dict[str, Any]:
    """All verdicts on a function, by point and dtype, then by claim."""
    cell: dict[str, Any] = {"name": function.expression, "group": function.group, "verdicts": {}}
    start, phi, seen = time.perf_counter(), objective(function), 0
    gradients: dict[tuple[int, ...], Any] = {}
    for dtype, (point, given) in product(DTYPES, function.points.items()):
        with jax.enable_x64(dtype == "float64"):
            args = tuple(a.astype(dtype) if a.dtype == np.float64 else a for a in given)
            argnums = tuple(n for n, a in enumerate(args) if a.dtype == dtype)
            if argnums not in gradients:
                gradients[argnums] = gradient(phi, argnums)
            verdicts = three_verdicts(function, phi, gradients[argnums], args, argnums, point)
        cell["verdicts"][f"{point}, {dtype}"] = verdicts
        seen += len(verdicts)
    cell["seconds"] = (time.perf_counter() - start) / seen
    jax.clear_caches()
    return cell


def three_verdicts(
    function: Function,
    phi: Callable[..., Any],
    claimed: Callable[..., Any],
    args: tuple[Any, ...],
    argnums: tuple[int, ...],
    point: str,
) -> dict[str, str]:
    """The verdict on each of the three claims at a point, with a word where it needs one.

    function: which.
    phi, claimed: its weighted sum, and the claimed gradients of that.
    args, argnums: its arguments, and the positions of those that are floating point.
    point: its name.
    """
    try:
        verdict = gradcheck(phi, *args, Wrong().argument(), argnums=argnums).verdict
    except ValueError as error:
        if "finite number" not in str(error):
            raise
        return {"right": f"refused: {error}"}
    if not np.isfinite(phi(*args, Wrong().argument())):
        return {"right": f"{verdict}: f itself is not finite in {args[argnums[0]].dtype}"}
    right = claimed(*args, Wrong().argument())
    finite = all(np.isfinite(leaf).all() for leaf in right)
    jumps, mistaken = (point in known.get(function.expression, "").split() for known in KNOWN)
    if verdict == "fail":
        reasons = {"not finite": not finite, "a jump": jumps, "jax.grad is wrong": mistaken}
        verdict += f": {next((reason for reason, holds in reasons.items() if holds), WRONG)}"
    elif mistaken or (verdict == "pass" and (jumps or not finite)):
        verdict += f": {WRONG}"
    elif jumps:
        verdict += ": a jump"
    verdicts = {"right": verdict}
    if not finite:
        return verdicts
    jaxpr = jax.make_jaxpr(phi)(*args, Wrong().argument()).jaxpr
    value = phi(*args, Wrong().argument())
    noise = NOISE * float(jnp.finfo(value.dtype).eps * max(1.0, abs(value)))
    stopped = lost_term(claimed, right, args, len(list(operands(jaxpr))), noise)
    wrongs = {"scaled": Wrong(percent=101) if np.linalg.norm(np.ravel(right[0])) > noise else None}
    wrongs["lost"] = None if stopped is None else Wrong(stopped=stopped)
    for name, wrong in wrongs.items():
        if wrong is None:
            continue
        at = (*args, wrong.argument())
        verdict = gradcheck(phi, *at, grads=claimed, argnums=argnums).verdict
        if verdict == "pass":
            near = is_subgradient(
                claimed(*at), lambda *moved: claimed(*moved, Wrong().argument()), args, argnums
            )
            verdict += ": a subgradient" if near else f": {WRONG}"
        verdicts[name] = verdict
    return verdicts


# The table

EXPLANATION = """\
Each function at an ordinary point and at its special ones (0, 1, ties, ends of the domain), in
float64 and float32, with three claims: `jax.grad`'s gradient, that with its first leaf 1 % too
large, and that with one term lost, as one operand of f's jaxpr passes no gradient on: of these the
one that changes it least, but by 1 % or more of a leaf. A claim has no verdict where the gradient
is 0, or not finite. A verdict would be WRONG if the first failed, or the others passed, other than
in these cases: f jumps there, so that no number is its derivative; `jax.grad` is not finite, or
wrong; a wrong claim is a subgradient all the same. Refused are points where f is not finite, by the
error that the checker is to raise. A wrong
claim is inconclusive at ties, knots and ends of a domain, where f has a kink larger than the error
in the claim, or no slope on one side; and with `jnp.corrcoef` everywhere, as it clips its diagonal
at exactly 1. Where f overflows in float32, its gradient is judged by float64 alone."""


def count(cells: list[dict[str, Any]], claim: str) -> Counter[str]:
    """How often each verdict was given on a claim."""
    verdicts = [at.get(claim) for cell in cells for at in cell["verdicts"].values()]
    return Counter(verdict for verdict in map(short, verdicts) if verdict)


def short(verdict: str | None) -> str | None:
    return verdict and ("refused" if verdict.startswith("refused") else verdict)


def markdown(result: dict[str, Any]) -> str:
    """Counts of verdicts by group, then the exceptions with their reasons."""
    cells = result["cells"]
    groups = list(dict.fromkeys(cell["group"] for cell in cells))
    columns = ("functions", "number", "points", *CLAIMS, "seconds a check")
    rows = []
    for group in [*groups, "all"]:
        chosen = [cell for cell in cells if group in {cell["group"], "all"}]
        at = sum(len(cell["verdicts"]) for cell in chosen)
        words = [
            "; ".join(f"{n} {verdict}" for verdict, n in sorted(count(chosen, claim).items()))
            for claim in CLAIMS
        ]
        seconds = float(np.median([cell["seconds"] for cell in chosen]))
        rows.append(protocol.line(group, str(len(chosen)), str(at), *words, f"{seconds:.2f}"))
    lists = [
        f"{told}: {', '.join(where)}."
        for told, mark in (
            ("`jax.grad` is not finite", "fail: not finite"),
            ("It is finite, but f jumps", "a jump"),
            ("It is finite, but wrong", "jax.grad is wrong"),
        )
        if (where := places(cells, mark))
    ]
    return "\n\n".join([protocol.table(columns, rows, EXPLANATION), *lists])


def places(cells: list[dict[str, Any]], mark: str) -> list[str]:
    """The functions and points at which the right claim's verdict ends so, in either dtype."""
    found = []
    for cell in cells:
        points = [
            at.split(",")[0].replace("_", " ")
            for at, verdicts in cell["verdicts"].items()
            if verdicts["right"].endswith(mark)
        ]
        if points:
            found.append(f"`{cell['name']}` ({', '.join(dict.fromkeys(points))})")
    return found


def measure(run: protocol.Run) -> dict[str, Any]:
    """Check the functions that are asked for, and print the table."""
    options = {"only": None, "resume": False} | vars(run.options)
    chosen, kept = functions()[:: protocol.extent(run, 1, 12, 100)], {}
    if options["only"]:
        chosen = [f for f in functions() if any(word in f.expression for word in options["only"])]
    if run.output is not None and (options["resume"] or options["only"]):
        kept = {cell["name"]: cell for cell in json.loads(run.output.read_text())["cells"]}
    if options["resume"]:
        chosen = [function for function in chosen if function.expression not in kept]
    for cell in run.cells(chosen, checked, lambda function: function.expression):
        kept[cell["name"]] = cell
        run.keep({"cells": list(kept.values())})
        told = [f"{at} {verdicts}" for at, verdicts in cell["verdicts"].items()]
        wrong = [line for line in told if WRONG in line or "refused" in line]
        print(f"{cell['name']}  {cell['seconds']:.2f}", *wrong, sep="\n    ", flush=True)
    result = {"cells": list(kept.values())}
    protocol.show(markdown(result))
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", help="those whose expression has one of these words")
    parser.add_argument("--resume", action="store_true", help="go on where --output ends")


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown, add_arguments)
