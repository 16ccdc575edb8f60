"""Points of known laws: published ones, and ladders of sizes at budgets."""

import numpy as np

from lm.compare.points import of_rows

# E, A, alpha, B, beta: Hoffmann et al. 2022 (appendix D.3), and Besiroglu et al. 2024 from the same runs.
HOFFMANN = (1.69, 406.4, 0.34, 410.7, 0.28)
BESIROGLU = (1.8172, 482.01, 0.3478, 2085.43, 0.3658)
# FLOPs of Chinchilla.
CHINCHILLA = 5.76e23
BUDGETS, SIZES = (1e18, 3e18, 1e19, 3e19, 1e20), (0.25, 0.5, 1.0, 2.0, 4.0)


def loss_of(law, parameters, tokens):
    e, a, alpha, b, beta = law
    return e + a / parameters**alpha + b / tokens**beta


def best_size(law, flops):
    """The size that is best for so many FLOPs, 6 of a parameter and token."""
    _, a, alpha, b, beta = law
    return (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta))


def joined(*parts):
    """All points of several families."""
    return of_rows([row for part in parts for row in part.rows()])


def ladder(law=BESIROGLU, noise=0.0, seed=0, seeds=1, family="a", compute=1.0, budgets=BUDGETS, sizes=SIZES):
    """Sizes around the best one at each budget, with relative noise in the loss; `compute` scales FLOPs and tokens for the same loss."""
    generator, rows = np.random.default_rng(seed), []
    for flops in budgets:
        for multiple in sizes:
            size = best_size(law, flops) * multiple
            tokens = flops / 6 / size
            rows += [{"parameters": size, "tokens": tokens * compute, "flops": flops * compute, "family": family, "seed": number,
                      "loss": loss_of(law, size, tokens) * np.exp(noise * generator.normal())} for number in range(seeds)]
    return of_rows(rows)
