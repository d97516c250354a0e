"""Reference shares for aligned labels: the contribution of each image of a mixture to the output of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tlfx.analysis.classifier import Classifier
from tlfx.analysis.last_tokens import LastTokens
from tlfx.analysis.similarity import same_place_share, similarity_share

__all__ = ["REFERENCES", "Mixture", "gradient_share", "references", "replacement_share"]

REFERENCES = {
    "similarity": "similarity of tokens (eq. 13)",
    "same_place": "similarity of features, place by place",
    "exchange": "effect of exchange for the other image's pixels",
    "occlusion": "effect of occlusion by the mean picture",
    "gradient": "|gradient × input|",
}
"""The measures of :func:`references` and their names."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A batch of images in which image i is mixed with image B − 1 − i.

    Attributes:
        images: floating (batch, channels, height, width), the first image of each pair.
        mixed: same shape, mask·first + (1 − mask)·second.
        mask: floating (batch, 1, height, width) in [0, 1], the share of the first image in each pixel.
        labels: int64 (batch,), the class of the first image.
    """

    images: Tensor
    mixed: Tensor
    mask: Tensor
    labels: Tensor

    @property
    def area(self) -> Tensor:
        """Share of the first image by area, (batch,)."""
        return self.mask.flatten(1).mean(1)

    @property
    def counts(self) -> Tensor:
        """Whether a pair is a mixture (both images visible) of two classes: bool (batch,)."""
        return (self.labels != self.labels.flip(0)) & (self.area > 0) & (self.area < 1)

    def blend(self, first: Tensor, second: Tensor) -> Tensor:
        """mask·first + (1 − mask)·second for any images."""
        return self.mask * first + (1 - self.mask) * second


def references(classifier: Classifier, tokens: LastTokens, batch: Mixture) -> dict[str, Tensor]:
    """Shares of the first image by each of :data:`REFERENCES`: float32 (batch,) in [0, 1], NaN where undefined.

    Let f be the logits of the model in evaluation mode and a, b the classes of the two images. The margin f_a − f_b is
    the preference of the model for the first image.

    - ``similarity``: eq. 13, :func:`tlfx.analysis.similarity.similarity_share`, for the tokens of the last block that
      the classifier reads, in the mean over them: for a model with a class token, that of the class token.
    - ``same_place``: not in the paper: :func:`tlfx.analysis.similarity.same_place_share` of the (flattened) input of
      the classifier for the mixed and the two unmixed images.
    - ``exchange``: :func:`replacement_share` of the margin, where the region of one image is filled with the pixels of
      the other image, which gives that image unmixed. It locates the margin of the mixture between the margins of the
      two images.
    - ``occlusion``: the same, where the region is filled with the mean image of the batch (channels, height, width).
    - ``gradient``: :func:`gradient_share` of f_a + f_b.

    In a mixture without regions (MixUp), the contribution of an image to each pixel is replaced.
    """
    images = batch.mixed.detach().requires_grad_()
    with torch.enable_grad():
        logits, feature = classifier(images)
        both = _of_classes(logits, batch.labels)
        (gradient,) = torch.autograd.grad(both.sum(), images)
    with torch.no_grad():
        own, own_feature = classifier(batch.images)
        other, other_feature = own.flip(0), own_feature.flip(0)
        read, _ = tokens(batch.mixed, batch.mask, feature)
        _, unmixed = tokens(batch.images, batch.mask, own_feature)
        mean = batch.images.mean(0, keepdim=True).expand_as(batch.images)
        hidden_first, _ = classifier(batch.blend(mean, batch.images.flip(0)))
        hidden_second, _ = classifier(batch.blend(batch.images, mean))
    # f_a − f_b, (batch,) each
    margin, first, second, without_first, without_second = (
        _margin(x, batch.labels) for x in (logits.detach(), own, other, hidden_first, hidden_second)
    )
    return {
        "similarity": similarity_share(read, unmixed, unmixed.flip(0)).mean(1),
        "same_place": same_place_share(*(x.detach().flatten(1) for x in (feature, own_feature, other_feature))),
        # a mixture whose one image is replaced by the other is that other image
        "exchange": replacement_share(margin, second, first),
        "occlusion": replacement_share(margin, without_first, without_second),
        "gradient": gradient_share(batch.mixed, gradient, batch.mask),
    }


def _of_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits of the classes of the first and the second image, (batch, 2)."""
    return logits.float().gather(1, torch.stack((labels, labels.flip(0)), 1))


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the class of the first image minus that of the second, (batch,)."""
    own, other = _of_classes(logits, labels).unbind(1)
    return own - other


def replacement_share(margin: Tensor, without_first: Tensor, without_second: Tensor) -> Tensor:
    """Share of the first image in the effects of both images on a margin: float32 (…) in [0, 1].

    The effect of the first image is e₁ = margin − without_first. The effect of the second image, which increases the
    logit of its class, is e₂ = without_second − margin. The share is λ = e₁ / (e₁ + e₂). Negative effects, of an image
    that decreases the logit of its class, count as 0; if neither effect is positive, the share is undefined (NaN).

    Args:
        margin, without_first, without_second: floating (…), logit of the first image's class minus that of the
            second's, for the mixture, with the first image replaced, and with the second image replaced.

    >>> replacement_share(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([-2.0, 2.0, 1.0]), torch.tensor([2.0, 2.0, -1.0]))
    tensor([0.7500, 0.0000,    nan])
    """
    one, other = (margin - without_first).clamp_min(0), (without_second - margin).clamp_min(0)
    return one / (one + other)


def gradient_share(images: Tensor, gradient: Tensor, mask: Tensor) -> Tensor:
    """Share of the first image in |input × gradient|: floating (batch,) in [0, 1], NaN if the product is 0 everywhere.

    λ = Σ m·|x·g| / Σ |x·g|, summed over channels and pixels, for images x and gradient g (batch, channels, height,
    width) and the mask m (batch, 1, height, width).

    >>> gradient_share(torch.tensor([[[[3.0, -1.0]]]]), torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]]))
    tensor([0.7500])
    """
    amount = (images * gradient).abs().float()
    return (mask * amount).flatten(1).sum(1) / amount.flatten(1).sum(1)
