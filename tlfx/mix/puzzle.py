"""Puzzle Mix: which blocks of two images stay, by a minimum cut, and where they move, by an assignment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tlfx.errors import InputError
from tlfx.mix.cut import Array, minimum_cut, scipy_module
from tlfx.mix.masked import check_alpha
from tlfx.mix.mixer import Mixer, MixerArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PuzzleMix", "gradient_saliency"]


class PuzzleMix(Mixer):
    """Blocks of two images, so chosen that little saliency is lost and few borders show (Puzzle Mix, arXiv 2009.06962).

    The cost of a choice is the saliency of what is left out; η·(−log p) per block, p = λ for the first image and 1 − λ
    for the second, λ ~ Beta(α, α); and for each two neighbours β if they come from two images, and β·γ times how
    different their pixels are along the border. The choice of least cost is found by a minimum cut, exactly, for whole
    blocks: the paper's n_labels=2. Each image's blocks then move so that what is salient lies where its image stays,
    by an optimal assignment whose cost is `move` times the squared distance; the paper approximates it.

    saliency: a function of images (B, C, H, W) and labels to what is salient, at least 0, (B, H, W); the paper's is
        `gradient_saliency(model)`.
    blocks: along each axis; they divide the image. alpha, beta, gamma, eta, move: as above; move=None leaves blocks in
        place.
    The other arguments are those of `Mixer`: num_classes, label_smoothing, mode (of λ), prob, pairing, generator.

    Cut and assignment are computed on the host, by SciPy: `pip install 'tlfx[saliency]'`.
    InputError on arguments that no mixing can follow, and for saliency of another form.

    >>> mix = PuzzleMix(lambda images, labels: images[:, 0], blocks=2, eta=0.0, beta=0.0, move=None, num_classes=2)
    >>> images = torch.tensor([[9.0, 1.0, 1.0, 8.0], [2.0, 7.0, 3.0, 1.0]]).view(2, 1, 2, 2)
    >>> mix(images, torch.tensor([0, 1]))[0][0, 0]
    tensor([[9., 7.],
            [3., 8.]])
    """

    def __init__(
        self,
        saliency: Callable[[Tensor, Tensor], Tensor],
        *,
        blocks: int = 4,
        alpha: float = 1.0,
        beta: float = 1.2,
        gamma: float = 0.5,
        eta: float = 0.2,
        move: float | None = 0.8,
        **arguments: Unpack[MixerArguments],
    ) -> None:
        check_alpha(alpha)
        if blocks < 2:
            raise InputError(f"blocks is {blocks}, expected a number along each axis, at least 2")
        if beta < 0.0 or eta < 0.0 or not 0.0 <= gamma <= 1.0 or (move is not None and move < 0.0):
            raise InputError(
                f"beta={beta}, gamma={gamma}, eta={eta}, move={move}: expected none below 0, and gamma at most 1, "
                "above which no cut is known to be the least"
            )
        super().__init__(**arguments)
        self.saliency, self.blocks, self.alpha = saliency, blocks, alpha
        self.beta, self.gamma, self.eta, self.move = beta, gamma, eta, move
        scipy_module("sparse.csgraph")  # to know of its lack before the first batch

    def _mix(self, images: Tensor, labels: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        batch, height, width = len(images), images.shape[-2], images.shape[-1]
        if height % self.blocks or width % self.blocks:
            raise InputError(
                f"images of {height}×{width} do not divide into {self.blocks}×{self.blocks} blocks; resize them, or "
                "use another number of blocks"
            )
        salient, pixels = self._salient(images, labels), _in_unit_range(images)
        mixed, mask = images.clone(), torch.ones(batch, 1, height, width, device=images.device)
        for i, (lam, j) in enumerate(zip(self._lams(batch), sources[1].tolist(), strict=True)):
            if lam == 1.0:
                continue
            first = self._choice(salient[[i, j]], pixels[[i, j]], lam)
            one, other = (self._moved(images[k], salient[k], z) for k, z in ((i, first), (j, ~first)))
            stays = torch.from_numpy(first).to(mask)
            mask[i, 0] = stays.repeat_interleave(height // self.blocks, 0).repeat_interleave(width // self.blocks, 1)
            mixed[i] = torch.where(mask[i].bool(), one, other)
        return mixed, mask

    def _lams(self, batch: int) -> list[float]:
        """λ for each image, 1 for those that stay unmixed."""
        count = self._draws_for(batch)
        mixes = self.draws.uniform(count) < self.mix_prob * self.mixup_enabled
        lams: list[float] = torch.where(mixes, self.draws.shares(self.alpha, count)[:, 0], 1.0).tolist()
        return {"batch": lams * batch, "pair": lams + lams[::-1], "elem": lams}[self.mode]

    def _salient(self, images: Tensor, labels: Tensor) -> Array:
        """Saliency of each block, of which those of an image sum to 1: (batch, blocks, blocks)."""
        found = self.saliency(images, labels)
        if not isinstance(found, Tensor) or found.shape != (len(images), *images.shape[-2:]):
            given = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise InputError(
                f"saliency is {given}, expected a tensor {(len(images), *images.shape[-2:])}, one per pixel"
            )
        by_block = F.adaptive_avg_pool2d(found.detach().double().cpu(), self.blocks).numpy()
        if not np.isfinite(by_block).all() or by_block.min() < 0.0:
            raise InputError(
                f"saliency holds values from {by_block.min():g} to {by_block.max():g}, expected finite ones of at "
                "least 0; take absolute values"
            )
        total = by_block.sum((1, 2), keepdims=True)
        # where nothing is salient, all is alike
        shares: Array = np.where(total > 0.0, by_block / np.maximum(total, 1e-300), 1 / self.blocks**2)
        return shares

    def _choice(self, salient: Array, pixels: Tensor, lam: float) -> NDArray[np.bool_]:
        """Which blocks come from the first of two images: bool (blocks, blocks)."""
        n = self.blocks
        prior = -np.log(np.clip([lam, 1.0 - lam], 1e-8, 1.0)) * self.eta / n**2
        unary = np.stack((salient[1] + prior[0], salient[0] + prior[1]))  # of taking the first, of taking the second
        beta = self.beta / (16 * n)
        unlike = (1.0 - np.eye(2))[..., None, None]
        down, right = (beta * (unlike + self.gamma * border) for border in _borders(pixels, n))
        return minimum_cut(unary, down, right)

    def _moved(self, image: Tensor, salient: Array, stays: NDArray[np.bool_]) -> Tensor:
        """The image with its blocks where they add most saliency to where it stays, at the least distance."""
        if self.move is None:
            return image
        n = self.blocks
        places = np.stack(np.divmod(np.arange(n**2), n), 1) / (n - 1)
        distance = ((places[:, None] - places) ** 2).sum(-1)
        cost = self.move * distance - salient.reshape(-1, 1) * stays.reshape(1, -1)
        _, to = scipy_module("optimize").linear_sum_assignment(cost)
        blocks = _blocks(image, n)
        moved = torch.empty_like(blocks)
        moved[torch.from_numpy(to).to(image.device)] = blocks
        return _joined(moved, n)


def gradient_saliency(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
) -> Callable[[Tensor, Tensor], Tensor]:
    """What the loss of a model on clean images depends on: the root mean square of its gradient over channels.

    The model runs in the mode that it is in; its parameters get no gradient.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
    >>> gradient_saliency(model)(torch.randn(5, 3, 4, 4), torch.tensor([0, 1, 1, 0, 1])).shape
    torch.Size([5, 4, 4])
    """

    def saliency(images: Tensor, labels: Tensor) -> Tensor:
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(model(images), labels), images)
        return gradient.square().mean(1).sqrt()

    return saliency


def _in_unit_range(images: Tensor) -> Tensor:
    """Pixels of a batch between 0 and 1, float64 on the CPU."""
    pixels = images.detach().double().cpu()
    low, high = pixels.aminmax()
    return (pixels - low) / (high - low).clamp_min(1e-12)


def _borders(pair: Tensor, n: int) -> tuple[Array, Array]:
    """How different two images (2, C, H, W) are at the borders of their blocks, for each two choices of the blocks
    above and below, (2, 2, n − 1, n), and left and right, (2, 2, n, n − 1): means of absolute differences."""
    both = []
    for lines in (pair, pair.transpose(-2, -1)):
        size = lines.shape[-2] // n
        last, first = lines[..., size - 1 : -1 : size, :], lines[..., size::size, :]
        differences = (last[:, None] - first[None]).abs().mean(2)
        both.append(differences.unflatten(-1, (n, -1)).mean(-1))
    return both[0].numpy(), both[1].transpose(-2, -1).numpy()


def _blocks(image: Tensor, n: int) -> Tensor:
    """The n² blocks of an image (C, H, W), row by row: (n², C, H/n, W/n)."""
    blocks: Tensor = image.unflatten(-2, (n, -1)).unflatten(-1, (n, -1))
    return blocks.permute(1, 3, 0, 2, 4).flatten(0, 1)


def _joined(blocks: Tensor, n: int) -> Tensor:
    """The image of n² blocks."""
    grid: Tensor = blocks.unflatten(0, (n, n))
    return grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
