"""Eq. 3: rows and columns of the matrix of a depth-wise convolution sum to Σ|K| where no edge is near."""

from __future__ import annotations

import torch
from torch import Tensor


def as_matrix(kernel: Tensor, height: int, width: int) -> Tensor:
    """T(K), (H·W, H·W): what a convolution of stride 1 with zero padding multiplies the tokens of a grid by."""
    rows, columns = kernel.shape
    matrix = torch.zeros(height * width, height * width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            for k in range(rows):
                for m in range(columns):
                    v, u = y + k - rows // 2, x + m - columns // 2
                    if 0 <= v < height and 0 <= u < width:
                        matrix[y * width + x, v * width + u] = abs(float(kernel[k, m]))
    return matrix


def inside(kernel: Tensor, height: int, width: int) -> list[int]:
    """P_NE: the positions whose token is in no window that reaches over the edge of the grid."""
    near = (2 * (kernel.shape[0] // 2), 2 * (kernel.shape[1] // 2))
    return [y * width + x for y in range(near[0], height - near[0]) for x in range(near[1], width - near[1])]


def kernel_sum(kernel: Tensor) -> float:
    """Σ|K| over the kernel."""
    return sum(abs(float(weight)) for row in kernel for weight in row)
