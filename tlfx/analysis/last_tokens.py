"""The tokens of a model's last layer: all of them, and those that its classifier reads."""

from __future__ import annotations

from torch import Tensor, nn

from tlfx.analysis.probe import Probe

__all__ = ["LastTokens"]


class LastTokens:
    """Reads the tokens of the last block of a model that has them on a grid.

    Args:
        model: any module; it is put in evaluation mode and not changed otherwise.
        images: floating (batch, channels, height, width); the model is captured for this batch size.

    A model without tokens on a grid has a single token, the input of its classifier.

    >>> import torch
    >>> images, mask = torch.rand(2, 3, 8, 8), torch.ones(1, 1, 8, 8)
    >>> model = nn.Sequential(nn.Conv2d(3, 5, 2, 2), nn.Conv2d(5, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1))
    >>> read, tokens = LastTokens(model, images)(images, mask, feature=torch.rand(2, 5))
    >>> read.shape, tokens.shape
    (torch.Size([2, 16, 5]), torch.Size([2, 16, 5]))
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self._probe = Probe(model, images.shape[1:], attention=False, batch=len(images), required=False)

    def __call__(self, images: Tensor, mask: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that the classifier reads, and all tokens, both floating (batch, tokens, channels).

        Args:
            images: floating (batch, channels, height, width).
            mask: float (batch or 1, 1, height, width).
            feature: floating (batch, …), the input of the classifier for these images.
        """
        if not self._probe.layers:
            alone = feature.detach().flatten(1)[:, None]
            return alone, alone
        *_, last = self._probe(images, mask)[0]
        return last.read_tokens, last.tokens
