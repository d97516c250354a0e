"""Tokens mixed without attention: state-space scans, Fourier filters, sampling at learned places."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, StochasticDepth  # type: ignore[import-untyped]

from models.attention_ways import CLASSES, DIM, around
from models.entry import Entry

SIDE = 4
"""Of the grid of tokens."""


class SelectiveScan(nn.Module):
    """Mamba in its plain form: an input-dependent state space, run step by step over the tokens."""

    def __init__(self, state: int = 4, both_ways: bool = False) -> None:
        super().__init__()
        self.inner, self.conv = nn.Linear(DIM, 2 * DIM), nn.Conv1d(DIM, DIM, 3, padding=2, groups=DIM)
        self.select = nn.Linear(DIM, 2 * state + 1)
        self.decay = nn.Parameter(torch.arange(1, state + 1).float().log().expand(DIM, state).clone())
        self.skip = nn.Parameter(torch.ones(DIM))
        self.out, self.state, self.both_ways = nn.Linear(DIM, DIM), state, both_ways

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.inner(x).chunk(2, -1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        y = self.scan(x)
        if self.both_ways:
            y = y + self.scan(x.flip(1)).flip(1)
        return self.out(y * F.silu(gate))

    def scan(self, u: Tensor) -> Tensor:
        """The recurrence h ← exp(ΔA)·h + ΔB·u, read by C."""
        delta, b, c = self.select(u).split((1, self.state, self.state), -1)
        delta = F.softplus(delta).expand_as(u)
        keep = torch.exp(torch.einsum("bld,dn->bldn", delta, -self.decay.exp()))
        come = torch.einsum("bld,bln,bld->bldn", delta, b, u)
        h = torch.zeros_like(come[:, 0])
        steps = []
        for i in range(u.shape[1]):
            h = keep[:, i] * h + come[:, i]
            steps.append(torch.einsum("bdn,bn->bd", h, c[:, i]))
        return torch.stack(steps, 1) + u * self.skip


class CumulativeScan(nn.Module):
    """A decaying sum over the tokens by ``cumsum``: all steps at once."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        log_keep = -F.softplus(self.gate(x)).cumsum(1)
        return (self.value(x) * (-log_keep).exp()).cumsum(1) * log_keep.exp()


class Lstm(nn.Module):
    """A two-way LSTM over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(DIM, DIM // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x)[0]
        return out


class GlobalFilter(nn.Module):
    """GFNet: rfft2, a learned complex filter, irfft2."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(SIDE, SIDE // 2 + 1, DIM, 2) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, channels = x.shape
        grid = x.view(batch, SIDE, SIDE, channels).to(torch.float32)
        spectrum = torch.fft.rfft2(grid, dim=(1, 2), norm="ortho")
        spectrum = spectrum * torch.view_as_complex(self.filter)
        grid = torch.fft.irfft2(spectrum, s=(SIDE, SIDE), dim=(1, 2), norm="ortho")
        return grid.reshape(batch, count, channels)


class AdaptiveFourier(nn.Module):
    """AFNO: a block-diagonal MLP on the frequencies, with soft shrinkage."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        size = DIM // blocks
        self.blocks = blocks
        self.one = nn.Parameter(0.1 * torch.randn(2, blocks, size, size))
        self.two = nn.Parameter(0.1 * torch.randn(2, blocks, size, size))

    def multiply(self, real: Tensor, imag: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A complex product, block by block."""
        mul = partial(torch.einsum, "...bi,bio->...bo")
        return mul(real, weight[0]) - mul(imag, weight[1]), mul(imag, weight[0]) + mul(real, weight[1])

    def forward(self, x: Tensor) -> Tensor:
        batch, count, channels = x.shape
        grid = torch.fft.rfft2(x.view(batch, SIDE, SIDE, channels), dim=(1, 2), norm="ortho")
        grid = grid.reshape(batch, SIDE, SIDE // 2 + 1, self.blocks, -1)
        real, imag = (part.relu() for part in self.multiply(grid.real, grid.imag, self.one))
        out = F.softshrink(torch.stack(self.multiply(real, imag, self.two), -1), 0.01)
        spectrum = torch.view_as_complex(out).reshape(batch, SIDE, SIDE // 2 + 1, channels)
        back = torch.fft.irfft2(spectrum, s=(SIDE, SIDE), dim=(1, 2), norm="ortho")
        return back.reshape(batch, count, channels) + x


class FourierMixing(nn.Module):
    """FNet: the real part of a Fourier transform over tokens and channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real


class LongConvolution(nn.Module):
    """Hyena: a convolution as long as the sequence, by the Fourier transform, without wrapping around."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(DIM, SIDE * SIDE) / SIDE)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[1]
        spectrum = torch.fft.rfft(x.transpose(1, 2), n=2 * count) * torch.fft.rfft(self.kernel, n=2 * count)
        return torch.fft.irfft(spectrum, n=2 * count)[..., :count].transpose(1, 2)


class Pyramid(nn.Module):
    """A stem, a layer that takes a map (batch, dim, 8, 8), its mean, a head."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, DIM, 4, 4), layer, nn.Linear(DIM, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(images)).mean((2, 3)))


class Deformable(nn.Module):
    """A modulated deformable convolution whose offsets come from the map."""

    def __init__(self, modulated: bool, groups: int = 1) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(DIM, 2 * 9 * groups, 3, padding=1)
        self.gates = nn.Conv2d(DIM, 9 * groups, 3, padding=1) if modulated else None
        self.conv = DeformConv2d(DIM, DIM, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.offsets(x), None if self.gates is None else self.gates(x).sigmoid())


class SpatialTransformer(nn.Module):
    """An affine map of the grid that the image itself decides."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Linear(DIM, 6)

    def forward(self, x: Tensor) -> Tensor:
        turned = 0.1 * self.where(x.mean((2, 3))).view(-1, 2, 3) + torch.eye(2, 3, device=x.device)
        return F.grid_sample(x, F.affine_grid(turned, list(x.shape), align_corners=False), align_corners=False)


class DeformableAttention(nn.Module):
    """DAT: keys and values sampled where the queries' offsets say."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Conv2d(DIM, DIM, 1), nn.Conv2d(DIM, 2 * DIM, 1)
        self.offset = nn.Sequential(nn.Conv2d(DIM, DIM, 2, 2), nn.GELU(), nn.Conv2d(DIM, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        theta = torch.eye(2, 3, device=x.device).expand(x.shape[0], -1, -1)
        grid = F.affine_grid(theta, [x.shape[0], 1, 4, 4], align_corners=False)
        places = (grid + self.offset(q).permute(0, 2, 3, 1).tanh() / 4).clamp(-1, 1)
        k, v = self.kv(F.grid_sample(x, places, align_corners=False)).flatten(2).chunk(2, 1)
        weights = (q.flatten(2).transpose(1, 2) @ k / math.sqrt(DIM)).softmax(-1)
        return x + (weights @ v.transpose(1, 2)).transpose(1, 2).view_as(x)


class Dropped(nn.Module):
    """A branch that stochastic depth drops."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(DIM, DIM, 3, padding=1), StochasticDepth(0.5, mode)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.conv(x))


class Unpooled(nn.Module):
    """SegNet: pooled with indices, and back to where it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(DIM, DIM, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled, where = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(self.conv(pooled), where, [2, 2])


def mapped(source: str, layer: Callable[[], nn.Module]) -> Entry:
    """A layer on a map."""
    return Entry(source, lambda: Pyramid(layer()))


ENTRIES = {
    "selective scan by a loop (Mamba)": around(SelectiveScan),
    "selective scan, both ways (Vim)": around(partial(SelectiveScan, both_ways=True)),
    "scan by cumsum": around(CumulativeScan),
    "LSTM over tokens": around(Lstm),
    "GFNet": around(GlobalFilter, nn.Identity, GlobalFilter),
    "GFNet, one token read": around(GlobalFilter, nn.Identity, GlobalFilter, first=True),
    "AFNO": around(AdaptiveFourier, AdaptiveFourier),
    "FNet": around(FourierMixing),
    "long convolution (Hyena)": around(LongConvolution),
    "deform_conv2d": mapped("torchvision", partial(Deformable, False)),
    "deform_conv2d, modulated": mapped("torchvision", partial(Deformable, True)),
    "deform_conv2d, offset groups": mapped("torchvision", partial(Deformable, True, 4)),
    "grid_sample (spatial transformer)": mapped("torch", SpatialTransformer),
    "deformable attention (DAT)": mapped("torch", DeformableAttention),
    "stochastic depth by rows": mapped("torchvision", partial(Dropped, "row")),
    "stochastic depth by batches": mapped("torchvision", partial(Dropped, "batch")),
    "max_unpool2d (SegNet)": mapped("torch", Unpooled),
}
