"""Label policies: the rules of the paper, and alternatives to each of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from tlfx.errors import InputError

__all__ = ["DEFAULT", "INFLUENCE", "OPTIONS", "PAPER", "Policy", "check_policy", "parse_policy", "policy_name"]

PAPER, INFLUENCE = "paper", "influence"
"""Names of policies: the rules of the paper, and those that agree best with the influence of each image."""

OPTIONS = {
    "residual": ("average", "skip", "norm", "gated"),
    "heads": ("mean", "norm"),
    "weights": ("absolute", "signed"),
    "aggregation": ("uniform", "weighted"),
    "values": ("equal", "norm", "deviation"),
}
"""The options of each field of :class:`Policy`, the paper's rule first."""


@dataclass(frozen=True)
class Policy:
    """How the labels of tokens are combined; the defaults are the rules of TL-Align (arXiv 2210.06455).

    No policy changes the logits. Under every policy, labels are convex combinations and linear in the mask.

    Attributes:
        residual: the label of a sum of two values with different labels. ``"average"``: the average of the two labels
            (eq. 11). ``"skip"``: the label of the branch alone, Y ← g(Y), without the skip connection (an ablation);
            the skip connection is the summand with fewer operators since both had a common input. ``"norm"``: each
            summand is weighted by the L2 norm of its channels at the token. ``"gated"``: each summand is weighted by
            the constants that multiply it before the sum, such as LayerScale and stochastic depth: the mean of
            |factor| for each sample, 1 for a summand without factor.
        heads: the weights of attention heads. ``"mean"``: all heads count equally (eq. 9). ``"norm"``: the attention
            weight of a token in a head is multiplied by the L2 norm of its value in that head, and the products are
            normalised over all tokens and heads. In linear attention, heads always count by their magnitude.
        weights: for token-mixing layers, convolutions and mixing weights other than a softmax. ``"absolute"``:
            Norm(|W|) (sec. 3.2). ``"signed"``: Norm(max(W, 0)), so that negative weights contribute no label; uniform
            where no weight is positive. In linear attention q·kᵀ, this applies to both factors.
        aggregation: for patch embedding and patch merging by a convolution or a linear layer. ``"uniform"``: all tokens
            count equally (Table 10). ``"weighted"``: tokens count by the layer's weights, averaged over channels and
            made non-negative as ``weights`` says. Two cases stay uniform: pooling, which has no weights, and a
            convolution whose input channels hold several tokens.
        values: the weights of tokens that are mixed or pooled, in addition to those of the layer. ``"equal"``: the
            layer's weights alone (eq. 7, 9). ``"norm"``: the weight w of a token is multiplied by the L2 norm of its
            value, Y ← Norm(|w|·‖x‖)·Y (Kobayashi et al., EMNLP 2020, arXiv 2004.10102). ``"deviation"``: by the L2 norm
            of the difference from the mean of the tokens, Y ← Norm(|w|·‖x − x̄‖)·Y: what all tokens have in common
            tells them apart as little as the image. The mean is that of all tokens of the sample, in attention that of
            the keys, head by head. This applies to attention, token-mixing layers, convolutions and average pooling;
            the weights of linear attention, of recurrences, of resampling and of values that no node of the graph holds
            count alone, and patch embedding and merging are subject to ``aggregation``. In a convolution written with
            windows (``unfold``), a matrix of weights counts alone, and a product, summed, by its own norm.

    Raises:
        InputError: an option is unknown.

    >>> Policy(residual="norm")
    Policy(residual='norm', heads='mean', weights='absolute', aggregation='uniform', values='equal')
    """

    residual: Literal["average", "skip", "norm", "gated"] = "average"
    heads: Literal["mean", "norm"] = "mean"
    weights: Literal["absolute", "signed"] = "absolute"
    aggregation: Literal["uniform", "weighted"] = "uniform"
    values: Literal["equal", "norm", "deviation"] = "equal"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, known = getattr(self, field.name), OPTIONS[field.name]
            if value not in known:
                raise InputError(f"{field.name}={value!r} is unknown, expected one of {', '.join(map(repr, known))}")


DEFAULT = Policy()
"""The rules of the paper."""
_NAMED = {PAPER: DEFAULT, INFLUENCE: Policy(residual="norm", values="deviation")}


def check_policy(policy: Any) -> Policy:
    """The policy, the one of a text that :func:`parse_policy` reads, or the paper's for None. Raises InputError for
    anything else."""
    if policy is None:
        return DEFAULT
    if isinstance(policy, str):
        return parse_policy(policy)
    if not isinstance(policy, Policy):
        raise InputError(f"policy={policy!r}: expected a tlfx.Policy such as tlfx.Policy(residual='norm')")
    return policy


def policy_name(policy: Policy) -> str:
    """:data:`PAPER`, or the options that a policy changes.

    >>> policy_name(Policy(residual="norm", weights="signed"))
    'residual=norm, weights=signed'
    """
    usual = asdict(DEFAULT)
    return ", ".join(f"{k}={v}" for k, v in asdict(policy).items() if v != usual[k]) or PAPER


def parse_policy(text: str) -> Policy:
    """The policy of a name, ``"paper"`` or ``"influence"``, or of a text ``FIELD=VALUE[,FIELD=VALUE…]``, such as
    :func:`policy_name` gives.

    Raises InputError for any other text.

    >>> parse_policy("influence") == Policy(residual="norm", values="deviation")
    True

    >>> parse_policy("residual=norm,values=deviation")
    Policy(residual='norm', heads='mean', weights='absolute', aggregation='uniform', values='deviation')
    """
    if text in _NAMED:
        return _NAMED[text]
    parts = [part.strip().partition("=") for part in text.split(",")]
    options = {name: value for name, _, value in parts}
    if not all(sign for _, sign, _ in parts) or len(options) < len(parts) or not options.keys() <= OPTIONS.keys():
        raise InputError(
            f"{text!r} is not a policy: expected {', '.join(map(repr, _NAMED))} or FIELD=VALUE[,FIELD=VALUE…] with "
            f"each of {', '.join(OPTIONS)} at most once, such as residual=norm"
        )
    return Policy(**options)  # type: ignore[arg-type]
