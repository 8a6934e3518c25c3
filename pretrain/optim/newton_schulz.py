"""Orthogonalisation of matrices by Newton-Schulz iterations: matrix products alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pretrain.optim.norms import squared_norms

# Of x -> a x + b x^3 + c x^5 on the singular values: Jordan et al. 2024,
# kellerjordan.github.io/posts/muon. After five steps they are between 0.7 and 1.2
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_LEAST_NORM = 1e-30  # of a matrix: 0 stays 0


def orthogonal(stack: Tensor, steps: int) -> Tensor:
    """Matrices with the singular vectors of those given, and singular values near 1.

    (n, rows, columns) to the same shape and dtype, which is that of all products. The scale of a
    matrix makes no difference, and a matrix of zeros stays one.
    """
    norms = squared_norms(stack.unbind()).sqrt().clamp(min=_LEAST_NORM)
    x = stack * norms.reciprocal().to(stack.dtype).view(-1, 1, 1)
    is_tall = x.shape[1] > x.shape[2]
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x.mT @ x if is_tall else x @ x.mT  # on the shorter side
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        left, right = (x, polynomial) if is_tall else (polynomial, x)
        x = torch.baddbmm(x, left, right, beta=a)
    return x


def with_equal_rows(stack: Tensor) -> Tensor:
    """Orthogonal matrices, (n, rows, columns), with rows of one norm; rows of zeros stay.

    The norm of a whole matrix is that of an orthogonal one, sqrt(min(rows, columns)).
    """
    rows, short = stack.shape[1], min(stack.shape[1:])
    norms: Tensor = torch.linalg.vector_norm(stack, dim=-1, keepdim=True)
    return stack * (math.sqrt(short / rows) * norms.clamp(min=_LEAST_NORM).reciprocal())
