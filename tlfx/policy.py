"""Label policies: the rules of the paper, and what may be tried in place of each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tlfx.errors import InputError

__all__ = ["DEFAULT", "OPTIONS", "Policy", "check_policy"]

OPTIONS = {
    "residual": ("average", "skip", "norm", "gated"),
    "heads": ("mean", "norm"),
    "weights": ("absolute", "signed"),
    "aggregation": ("uniform", "weighted"),
}
"""What each field of :class:`Policy` may be, the paper's rule first."""


@dataclass(frozen=True)
class Policy:
    """How labels are combined where values are; the defaults are the rules of TL-Align (arXiv 2210.06455).

    Whatever the policy, logits stay as they are, and labels stay convex combinations that are linear in the mask.

    Attributes:
        residual: labels of a sum of two values that differ. ``"average"`` of the two (eq. 11); ``"skip"`` leaves the
            skip path out, Y ← g(Y), which is the summand with fewer operators since the two parted (ablation);
            ``"norm"`` weights each summand by the L2 norm of its channels at the token; ``"gated"`` weights each by the
            constants it was multiplied with before the sum, such as LayerScale and stochastic depth: the mean of
            |factor| for each sample, 1 where there is none.
        heads: weights of attention heads. ``"mean"``: all the same (eq. 9); ``"norm"``: the weight of a token in a head
            counts by the L2 norm of its value in that head, normalised over all tokens and heads. Linear attention sums
            its heads by their magnitude in any case.
        weights: token-mixing layers, convolutions and weights that are no softmax. ``"absolute"``: Norm(|W|)
            (sec. 3.2); ``"signed"``: Norm(max(W, 0)), so that inhibition brings no label, uniform where no weight is
            positive. Of linear attention q·kᵀ, both factors are taken so.
        aggregation: patch embedding and merging by a convolution or linear layer. ``"uniform"`` over the tokens
            (Table 10); ``"weighted"`` by the layer's own weights, averaged over channels and taken as ``weights`` says.
            Pooling has no weights and stays uniform, as do tokens side by side in the channels of a convolution.

    Raises:
        InputError: an option is unknown.

    >>> Policy(residual="norm")
    Policy(residual='norm', heads='mean', weights='absolute', aggregation='uniform')
    """

    residual: str = "average"
    heads: str = "mean"
    weights: str = "absolute"
    aggregation: str = "uniform"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, known = getattr(self, field.name), OPTIONS[field.name]
            if value not in known:
                raise InputError(f"{field.name}={value!r} is unknown, expected one of {', '.join(map(repr, known))}")


DEFAULT = Policy()
"""The rules of the paper."""


def check_policy(policy: Any) -> Policy:
    """The policy, or that of the paper for None. Raises InputError for anything else."""
    if policy is None:
        return DEFAULT
    if not isinstance(policy, Policy):
        raise InputError(f"policy={policy!r}: expected a tlfx.Policy such as tlfx.Policy(residual='norm')")
    return policy
