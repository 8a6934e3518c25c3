"""Orthogonalisation of matrices by Newton-Schulz iterations: matrix products alone."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pretrain.config.settings import NewtonSchulz
from pretrain.optim.norms import squared_norms

# (a, b, c) of x -> a x + b x^3 + c x^5 on the singular values, one per step; the last is repeated
_COEFFICIENTS = {
    # Jordan et al. 2024 (kellerjordan.github.io/posts/muon); singular values end in 0.7 to 1.2
    NewtonSchulz.jordan: [(3.4445, -4.7750, 2.0315)],
    # Amsel et al. 2025, arXiv 2505.16932: each step's polynomial is the best after those before it
    NewtonSchulz.polar_express: [
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ],
}
_SAFETY = 1.01  # that of Amsel et al.: rounding must not lead beyond the interval of convergence
_LEAST_NORM = 1e-30  # of a matrix: 0 stays 0


def coefficients(kind: NewtonSchulz, steps: int) -> list[tuple[float, float, float]]:
    """(a, b, c) of each of `steps` steps."""
    table = _COEFFICIENTS[kind]
    if kind is NewtonSchulz.polar_express:
        last = table[-1]
        table = [(a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in table[:-1]] + [last]
    return list(itertools.islice(itertools.chain(table, itertools.repeat(table[-1])), steps))


def orthogonal(stack: Tensor, kind: NewtonSchulz, steps: int) -> Tensor:
    """Matrices with the singular vectors of those given, and singular values near 1.

    (n, rows, columns) to the same shape and dtype, which is that of all products. The scale of a
    matrix makes no difference, and a matrix of zeros stays one.
    """
    norms = squared_norms(stack.unbind()).sqrt().clamp(min=_LEAST_NORM)
    if kind is NewtonSchulz.polar_express:
        norms = norms * _SAFETY
    x = stack * norms.reciprocal().to(stack.dtype).view(-1, 1, 1)
    is_tall = x.shape[1] > x.shape[2]
    for a, b, c in coefficients(kind, steps):
        gram = x.mT @ x if is_tall else x @ x.mT  # on the shorter side
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        left, right = (x, polynomial) if is_tall else (polynomial, x)
        x = torch.baddbmm(x, left, right, beta=a)
    return x
