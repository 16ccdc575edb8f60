"""What parameters begin with: drawn where a model is small, and told from the program that would draw them where it is not."""

import jax
import numpy as np
from jax.extend.core import Literal

# Models of up to so many parameters are drawn.
MOST_DRAWN = 50_000_000
# Entries of a sample of a parameter that is not drawn: its standard deviation is good to half a per cent.
_SAMPLE = 1 << 16
_ROUNDING = 1e-6
# What is done to every entry alone, whatever the shape.
_ELEMENTWISE = frozenset((
    "add", "sub", "mul", "div", "max", "min", "neg", "exp", "log", "sqrt", "rsqrt", "erf_inv", "integer_pow", "and", "or", "xor", "not",
    "shift_right_logical", "shift_left", "convert_element_type", "bitcast_convert_type"))
# What moves or repeats entries, and leaves their distribution alone.
_MOVES = frozenset(("broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "rev", "copy"))


def initial_values(model, seed: int) -> list[tuple[float, float] | None]:
    """(mean, standard deviation) of the first values of each leaf of a model's parameters, in the order of the tree.

    A model of more than MOST_DRAWN entries is not drawn: its leaves are told from samples of single entries, and None where those
    depend on each other (orthogonal matrices).
    """
    shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    if sum(leaf.size for leaf in shapes) <= MOST_DRAWN:
        drawn = jax.tree.leaves(jax.jit(model.init)(jax.random.key(seed)))
        return [(float(np.mean(leaf)), float(np.std(leaf))) for leaf in drawn]
    traced = jax.make_jaxpr(model.init_boxed)(jax.random.key(0)).jaxpr
    entries = _Entries(traced, lambda number: None, np.random.default_rng(seed))
    samples = [entries.of(variable) for variable in traced.outvars]
    return [sample if sample is None else (float(np.mean(sample)), float(np.std(sample))) for sample in samples]


def is_constant(mean: float, deviation: float) -> bool:
    """Whether a parameter begins with one number, up to rounding."""
    return deviation <= _ROUNDING * abs(mean)


class _Entries:
    """Samples of single entries of the values in a traced program: [_SAMPLE], or [] for a constant; None where they cannot be told.

    Only what a result depends on is looked at; shapes are not.
    """

    def __init__(self, jaxpr, argument, rng: np.random.Generator):
        self._argument, self._rng, self._known = argument, rng, {}
        self._places = {variable: number for number, variable in enumerate(jaxpr.invars)}
        self._makers = {variable: (equation, number) for equation in jaxpr.eqns for number, variable in enumerate(equation.outvars)}

    def of(self, variable):
        """The sample of a variable, the same each time."""
        if isinstance(variable, Literal):
            return np.asarray(variable.val) if np.ndim(variable.val) == 0 else None
        if variable not in self._known:
            self._known[variable] = self._find(variable)
        return self._known[variable]

    def _find(self, variable):
        if variable in self._places:
            return self._argument(self._places[variable])
        if variable not in self._makers:  # an array that was there before
            return None
        equation, number = self._makers[variable]
        name, inner = equation.primitive.name, equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        if name == "random_bits":
            return self._rng.integers(0, 2 ** equation.params["bit_width"], _SAMPLE, f"uint{equation.params['bit_width']}")
        if inner is not None:  # a call, or one turn of a scan: both number their arguments and results as their bodies do
            inner = getattr(inner, "jaxpr", inner)
            return _Entries(inner, lambda place: self.of(equation.invars[place]), self._rng).of(inner.outvars[number])
        if name not in _ELEMENTWISE | _MOVES:
            return None
        operands = [self.of(operand) for operand in equation.invars]
        if any(operand is None for operand in operands):
            return None
        return operands[0] if name in _MOVES else np.asarray(equation.primitive.bind(*operands, **equation.params))
