"""Parameters that differ by their random key alone are drawn in one loop: less for XLA to compile, and the same values to the bit.

A GPT-2 of 6 layers draws 38 matrices of 5 shapes from as many keys; one by one, XLA compiles them half as long as the whole train step.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, Var, jaxpr_as_fun
from jax.extend.core.primitives import random_fold_in_p


def drawn_together(make, rng: jax.Array):
    """make(rng), a tree of arrays, without the equations that no result needs.

    Linen folds `rng` with a number that it makes of a parameter's path. Results that differ by this number alone are made by one loop over
    the folded keys.
    """
    closed, shapes = jax.make_jaxpr(make, return_shape=True)(rng)
    outcomes, traced = closed.jaxpr.outvars, _Traced(closed)
    if traced.folds:
        keys = jax.vmap(functools.partial(jax.random.fold_in, rng))(jnp.asarray(list(traced.folds.values()), jnp.uint32))
    alike = {}
    for place, outcome in enumerate(outcomes):
        program, used = traced.leading_to([outcome])
        alike.setdefault(str(program.jaxpr) if used else place, []).append((place, program, used))
    results = {}
    for members in alike.values():
        if len(members) > 1:
            places, (program, *_), used = zip(*members, strict=True)
            make_one = jaxpr_as_fun(program)
            # A loop, since of a vmapped array XLA would draw every part anew that is cut from it.
            (stacked,) = jax.lax.map(lambda folded, make_one=make_one: make_one(rng, *folded), keys[jnp.asarray(used)])
            results |= zip(places, stacked, strict=True)
    others = [place for place in range(len(outcomes)) if place not in results]
    program, used = traced.leading_to([outcomes[place] for place in others])
    results |= zip(others, jaxpr_as_fun(program)(rng, *(keys[number] for number in used)), strict=True)
    return jax.tree.unflatten(jax.tree.structure(shapes), [results[place] for place in range(len(outcomes))])


class _Traced:
    """A traced function of one key; `folds` are the variables of keys that are folded with a number, and these numbers, in order."""

    def __init__(self, closed: ClosedJaxpr):
        self._closed, (rng,) = closed, closed.jaxpr.invars
        self._makers = {var: place for place, equation in enumerate(closed.eqns) for var in equation.outvars}
        self.folds = {equation.outvars[0]: int(equation.invars[1].val) for equation in closed.eqns
                      if equation.primitive is random_fold_in_p and equation.invars[0] is rng and isinstance(equation.invars[1], Literal)}
        self._numbers = {var: number for number, var in enumerate(self.folds)}

    def leading_to(self, results: list[Var]) -> tuple[ClosedJaxpr, list[int]]:
        """(what makes some results of the key and, after it, of folded keys; which of `folds` these are)."""
        places, used, waiting, seen = set(), [], list(results), set()
        while waiting:
            var = waiting.pop()
            if isinstance(var, Literal) or var in seen:
                continue
            seen.add(var)
            if var in self._numbers:
                used.append(self._numbers[var])
            elif var in self._makers and self._makers[var] not in places:
                places.add(self._makers[var])
                waiting.extend(self._closed.eqns[self._makers[var]].invars)
        folded = list(self.folds)
        jaxpr, used = self._closed.jaxpr, sorted(used)
        jaxpr = jaxpr.replace(invars=[*jaxpr.invars, *(folded[number] for number in used)], outvars=results,
                              eqns=[self._closed.eqns[place] for place in sorted(places)])
        return ClosedJaxpr(jaxpr, self._closed.consts), used
