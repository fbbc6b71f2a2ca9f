"""A device whose float32 products are TF32, where there is none: the CPU made to compute so."""

from contextlib import contextmanager

import jax
from jax import lax
from jax._src.interpreters import mlir

from jaxbp.checking.rounded_products import is_rounded, rounded


@contextmanager
def rounding_products(digits=10, *, toward_zero=False):
    """The whole process multiplies float32 arrays as a device that rounds: operands keep some of
    their 23 binary digits, unless a product's precision is "highest"; sums are in float32.

    ``jaxbp.checking.rounded_products.with_rounded_products`` does so to one function; here the
    CPU's translation of products into XLA's operations is another one for a while.  Compiled
    programs are forgotten before and after; those on disk are found by the program itself.
    """

    def rule_for(usual):
        def rule(context, *operands, **params):
            if is_rounded(params):
                operands = [
                    mlir.lower_fun(
                        lambda x: rounded(x, digits=digits, toward_zero=toward_zero),
                        multiple_results=False,
                    )(context.replace(avals_in=[aval], avals_out=[aval]), operand)[0]
                    for aval, operand in zip(context.avals_in, operands, strict=True)
                ]
                params = params | {"precision": (lax.Precision.HIGHEST,) * 2}
            return usual(context, *operands, **params)

        return rule

    rules = mlir._platform_specific_lowerings["cpu"]
    kept = {each: rules[each] for each in (lax.dot_general_p, lax.conv_general_dilated_p)}
    jax.clear_caches()
    try:
        for primitive, usual in kept.items():
            mlir.register_lowering(primitive, rule_for(usual.rule), platform="cpu")
        yield
    finally:
        rules.update(kept)
        jax.clear_caches()
