"""Exponential smoothing along the sequence of tokens, in both directions, computed by Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Smoothing"]


class Smoothing(nn.Module):
    """Each channel of a token is a sum over all tokens, with weights that decay with the distance at a learned rate.

    The graph has Fourier transforms, where every token depends on all others; only the module knows the weights.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.linspace(-2.0, 2.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (batch, tokens, channels) to the same shape."""
        tokens = x.shape[1]
        kernel = torch.cat((self.decaying(tokens), self.decaying(tokens + 1).flip(0)[:-1]))  # distances 0 … n-1, n … 1
        product = torch.fft.rfft(kernel, dim=0) * torch.fft.rfft(x.float(), n=2 * tokens, dim=1)
        smooth: Tensor = torch.fft.irfft(product, n=2 * tokens, dim=1)
        return smooth[:, :tokens].to(x.dtype)

    def decaying(self, tokens: int) -> Tensor:
        """Weights (tokens, channels) at the distances 0, 1, 2, …"""
        distances = torch.arange(tokens, device=self.rate.device)
        weights: Tensor = self.rate.sigmoid() ** distances[:, None]
        return weights
