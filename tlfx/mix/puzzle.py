"""Puzzle Mix: a minimum cut selects the blocks of two images, an optimal assignment moves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tlfx.errors import InputError, a_type
from tlfx.mix.cut import Array, minimum_cut, scipy_module
from tlfx.mix.masked import check_alpha
from tlfx.mix.mixer import Mixer, MixerArguments

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PuzzleMix", "gradient_saliency"]


class PuzzleMix(Mixer):
    """Selects blocks of two images so that little saliency is lost and borders are smooth (arXiv 2009.06962).

    The cost of a selection is the saliency of the blocks that are left out; η·(−log p) per block, with p = λ for the
    first image and 1 − λ for the second, λ ~ Beta(α, α); and for each pair of neighbours, β if they come from different
    images plus β·γ times the difference of their pixels along the border. A minimum cut finds the selection of lowest
    cost, exactly, for whole blocks (n_labels=2 in the paper). The blocks of each image then move so that salient blocks
    are where their image stays, by an optimal assignment with cost `move` times the squared distance, which the paper
    approximates.

    saliency: a function from images (B, C, H, W) and labels to saliency (B, H, W) of at least 0;
        `gradient_saliency(model)` in the paper.
    blocks: number along each axis; it must divide height and width of the images.
    alpha, beta, gamma, eta, move: as above; with move=None blocks stay in place.
    The other arguments are those of `Mixer`: num_classes, label_smoothing, mode (of λ), prob, pairing, generator.

    SciPy computes cut and assignment on the CPU: `pip install 'tlfx[saliency]'`.
    InputError for invalid arguments, or if saliency has another shape.

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
            raise InputError(f"blocks is {blocks}, expected a number of blocks along each axis, at least 2")
        if beta < 0.0 or eta < 0.0 or not 0.0 <= gamma <= 1.0 or (move is not None and move < 0.0):
            raise InputError(
                f"beta={beta}, gamma={gamma}, eta={eta}, move={move}: expected none below 0, and gamma at most 1, "
                "since a minimum cut solves the problem only up to there"
            )
        super().__init__(**arguments)
        self.saliency, self.blocks, self.alpha = saliency, blocks, alpha
        self.beta, self.gamma, self.eta, self.move = beta, gamma, eta, move
        scipy_module("sparse.csgraph")  # reports a missing SciPy before the first batch

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
        """λ for each image, 1 for images that stay unmixed."""
        count = self._draws_for(batch)
        mixes = self.draws.uniform(count) < self.mix_prob * self.mixup_enabled
        lams: list[float] = torch.where(mixes, self.draws.shares(self.alpha, count)[:, 0], 1.0).tolist()
        return {"batch": lams * batch, "pair": lams + lams[::-1], "elem": lams}[self.mode]

    def _salient(self, images: Tensor, labels: Tensor) -> Array:
        """Saliency of each block, with sum 1 for each image: (batch, blocks, blocks)."""
        maps = self.saliency(images, labels)
        if not isinstance(maps, Tensor) or maps.shape != (len(images), *images.shape[-2:]):
            given = f"of shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else a_type(maps)
            raise InputError(
                f"saliency is {given}, expected a tensor {(len(images), *images.shape[-2:])}, one value per pixel"
            )
        by_block = F.adaptive_avg_pool2d(maps.detach().double().cpu(), self.blocks).numpy()
        if not np.isfinite(by_block).all() or by_block.min() < 0.0:
            raise InputError(
                f"saliency holds values from {by_block.min():g} to {by_block.max():g}, expected finite values "
                "of at least 0; take absolute values"
            )
        total = by_block.sum((1, 2), keepdims=True)
        # an image without saliency gets equal values
        shares: Array = np.where(total > 0.0, by_block / np.maximum(total, 1e-300), 1 / self.blocks**2)
        return shares

    def _choice(self, salient: Array, pixels: Tensor, lam: float) -> NDArray[np.bool_]:
        """The blocks that come from the first of two images: bool (blocks, blocks)."""
        n = self.blocks
        prior = -np.log(np.clip([lam, 1.0 - lam], 1e-8, 1.0)) * self.eta / n**2
        unary = np.stack(
            (salient[1] + prior[0], salient[0] + prior[1])
        )  # cost of taking the first image, of taking the second
        beta = self.beta / (16 * n)
        unlike = (1.0 - np.eye(2))[..., None, None]
        down, right = (beta * (unlike + self.gamma * border) for border in _borders(pixels, n))
        return minimum_cut(unary, down, right)

    def _moved(self, image: Tensor, salient: Array, stays: NDArray[np.bool_]) -> Tensor:
        """The image with its blocks moved: most saliency where the image stays, at the least distance."""
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
    """Saliency of images for a model: the root mean square over channels of the gradient of the loss.

    The model runs in its current mode; its parameters get no gradient.

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
    """Pixels of a batch scaled to [0, 1], float64 on the CPU."""
    pixels = images.detach().double().cpu()
    low, high = pixels.aminmax()
    return (pixels - low) / (high - low).clamp_min(1e-12)


def _borders(pair: Tensor, n: int) -> tuple[Array, Array]:
    """Mean absolute differences of pixels at the borders of blocks of two images (2, C, H, W).

    The first two axes say which image holds the block on either side: (2, 2, n − 1, n) for blocks above and below,
    (2, 2, n, n − 1) for blocks left and right.
    """
    both = []
    for lines in (pair, pair.transpose(-2, -1)):
        size = lines.shape[-2] // n
        last, first = lines[..., size - 1 : -1 : size, :], lines[..., size::size, :]
        # (2, 2, channels, n − 1, pixels of a line) before the mean over channels
        differences = (last[:, None] - first[None]).abs().mean(2)
        both.append(differences.unflatten(-1, (n, -1)).mean(-1))
    return both[0].numpy(), both[1].transpose(-2, -1).numpy()


def _blocks(image: Tensor, n: int) -> Tensor:
    """The n² blocks of an image (C, H, W) in row-major order: (n², C, H/n, W/n)."""
    blocks: Tensor = image.unflatten(-2, (n, -1)).unflatten(-1, (n, -1))
    return blocks.permute(1, 3, 0, 2, 4).flatten(0, 1)


def _joined(blocks: Tensor, n: int) -> Tensor:
    """The image (C, H, W) of n² blocks, the inverse of `_blocks`."""
    grid: Tensor = blocks.unflatten(0, (n, n))
    return grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
