"""A check of a rule against the true dependence of the operator's outputs on its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from tlfx._torch import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from tlfx.errors import InputError, WrongRuleError
from tlfx.propagate.maps import IMAGE, NONE
from tlfx.propagate.values import Value
from tlfx.testing.content import Content, default_layout, from_pixels, to_pixels
from tlfx.testing.influence import influence
from tlfx.testing.label_probe import LabelProbe

__all__ = ["check_rule"]

BATCH = 2
_LAWS, _LESS, _MORE = 1e-4, 1e-12, 1e-6
"""Tolerance of the laws, and shares below which a token counts as absent or above which as present."""
_REMEDIES = {
    "leaves out": "Fix the rule, or state with less= why labels leave out inputs that the output depends on.",
    "counts": "Fix the rule: the output did not depend on this token for any of the random inputs.",
}


def check_rule(
    operator: Callable[..., Any],
    make_inputs: Callable[[], Any],
    *,
    less: str = "",
    channels: Sequence[int] = (),
    trials: int = 50,
    seed: int = 0,
) -> None:
    """Check the rule of an operator or module against the dependence of its outputs on its inputs.

    For random inputs, the check determines the tokens that each output element depends on (by autograd, or by
    perturbation if there is no gradient) and the tokens that its label contains. It raises WrongRuleError if a label
    leaves out a token that the output depends on, if a label counts a token that the output never depends on, or if the
    output depends on other samples. It also checks the laws of all labels: they are convex combinations, linear in the
    mask, and independent of other samples.

    Args:
        operator: a function of tensors that calls the operator, the operator itself, or a module.
        make_inputs: returns random arguments, with the same shapes at every call and a batch of 2: a tuple, a dict of
            keyword arguments or one tensor. Wrap values with image content in :class:`Content`, which states their
            layout; without any, the first floating-point tensor has content, as (batch, tokens, channels) or images.
            Indices and masks are taken from the first call only.
        less: the reason why labels may leave out tokens that the output depends on (such as a sigmoid mask, statistics
            of a norm, scores); empty if they may not.
        channels: axes of the outputs that hold channels of one token, which are checked together; without, each element
            is checked.
        trials: maximum number of random inputs; each token that a label counts must matter for one of them.
        seed: seed of the random inputs.

    Raises WrongRuleError, and the errors of capture and propagation.

    >>> check_rule(torch.nn.Conv1d(2, 3, 3, padding=1), lambda: Content(torch.randn(2, 2, 5), "bct"))
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = _Inputs(make_inputs())
        probe = _probe(operator, first)
        outputs = [_Output(place, value, bool(less), channels) for place, value in enumerate(probe.values[:-1])]
        for trial in range(trials):
            _give(probe, first if trial == 0 else _Inputs(make_inputs()))
            _check_laws(probe, outputs, seed + trial)
            for output in outputs:
                output.compare(probe, seed + trial)
            if trial > 1 and not any(bool(o.extra.any()) for o in outputs):
                break
        for output in outputs:
            output.conclude()


def _probe(operator: Callable[..., Any], inputs: _Inputs) -> LabelProbe:
    """The operator as a probed function of images, with its outputs in a list."""
    parts: dict[str, Any] = {"operator": operator} if isinstance(operator, nn.Module) else {}
    parts |= {f"given_{i}": _as_part(x) for i, x in enumerate(inputs.others)}

    def run(images: Tensor, **parts: Any) -> Any:
        function = parts.pop("operator", operator)
        args, kwargs = inputs.call(from_pixels(images, inputs.contents), list(parts.values()))
        outputs = [x for x in tree_leaves(function(*args, **kwargs)) if isinstance(x, Tensor)]
        return [*outputs, images]  # propagation needs an output with content

    return LabelProbe(run, to_pixels(inputs.contents), parts)


class _Inputs:
    """Arguments of an operator, split into values with content, other tensors, and the rest."""

    contents: list[Content]
    others: list[Tensor]

    def __init__(self, made: Any) -> None:
        args, kwargs = ((), made) if isinstance(made, dict) else (made if isinstance(made, tuple) else (made,), {})
        self.leaves: list[Any]
        self.spec: TreeSpec
        self.leaves, self.spec = tree_flatten((args, kwargs))
        if not any(isinstance(x, Content) for x in self.leaves):
            self.leaves = _with_first_content(self.leaves)
        self.contents = [x for x in self.leaves if isinstance(x, Content)]
        self.others = [x for x in self.leaves if isinstance(x, Tensor)]
        if any(c.batch != BATCH for c in self.contents):
            raise InputError(f"expected inputs with a batch of {BATCH}, got {[c.batch for c in self.contents]}")

    def call(self, contents: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
        """The arguments with their tensors replaced by these."""
        content, other = iter(contents), iter(others)

        def put(x: Any) -> Any:
            return next(content) if isinstance(x, Content) else next(other) if isinstance(x, Tensor) else x

        return tree_unflatten([put(x) for x in self.leaves], self.spec)


def _with_first_content(leaves: list[Any]) -> list[Any]:
    place = next((i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()), None)
    if place is None:
        raise InputError("make_inputs returns no floating-point tensor: expected one that can hold image content")
    content = Content(leaves[place], default_layout(leaves[place]))
    return [*leaves[:place], content, *leaves[place + 1 :]]


def _as_part(x: Tensor) -> Tensor:
    return nn.Parameter(x.clone(), requires_grad=False) if x.is_floating_point() else x


def _give(probe: LabelProbe, inputs: _Inputs) -> None:
    """Set a probe to other inputs; indices and masks stay, since the graph may contain them as constants."""
    probe.images = to_pixels(inputs.contents)
    for i, x in enumerate(inputs.others):
        if x.is_floating_point():
            getattr(probe.net, f"given_{i}").copy_(x)


def _labels(probe: LabelProbe, mask: Tensor, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    with torch.no_grad():
        return probe.labels(mask)


def _check_laws(probe: LabelProbe, outputs: Sequence[_Output], seed: int) -> None:
    """Compute the share of every pixel in every label, and check the laws of labels."""
    pixels = probe.images.shape[-1]
    unit = torch.eye(pixels)[None, :, None]
    alone = torch.cat((unit, torch.zeros_like(unit)))
    mask = torch.rand(BATCH, 1, 1, pixels)
    known = [o for o in outputs if o.value.is_content]
    labels = [[la.nan_to_num(0.0) for la in _labels(probe, m, seed)[: len(known)]] for m in (unit, alone, mask)]
    for output, shares, split, mixed in zip(known, *labels, strict=True):
        output.check_laws(shares.flatten(0, -2), split.flatten(0, -2), mixed.flatten(), mask[:, 0, 0].double())


class _Output:
    """One output of an operator: the tokens in its labels, and the tokens that it depends on."""

    def __init__(self, place: int, value: Value, may_be_less: bool, channels: Sequence[int]) -> None:
        self.place, self.value, self.may_be_less, self.channels = place, value, may_be_less, channels
        ids = value.expanded()[0].flatten() if value.is_content else torch.full((_count(value),), NONE)
        self.known, self.sample = ids != NONE, ids % BATCH
        self.exempt = self.known & (ids.div(BATCH, rounding_mode="floor") == IMAGE)
        """Elements with the image-level label, which are not compared."""
        self.shares = torch.zeros(len(ids), 0)
        self.said = self.true = torch.zeros(len(ids), 1, dtype=torch.bool)

    def check_laws(self, shares: Tensor, split: Tensor, mixed: Tensor, mask: Tensor) -> None:
        """Store shares (elements, pixels), and check convexity, linearity and independence of samples."""
        self.shares = shares
        self._hold("labels are convex combinations", (shares.sum(1) - 1)[self.known], shares.clamp_max(0))
        self._hold("labels are linear in the mask", (shares * mask[self.sample]).sum(1) - mixed)
        self._hold("no label depends on another sample", split - shares * (self.sample == 0)[:, None])

    def _hold(self, law: str, *errors: Tensor) -> None:
        worst = max((float(e.abs().max()) for e in errors if e.numel()), default=0.0)
        if worst > _LAWS:
            raise WrongRuleError(f"output {self.place}: {law}, but the rule violates this by {worst:.1g}")

    def compare(self, probe: LabelProbe, seed: int) -> None:
        """Compare labels with the dependence in one trial."""
        net = deepcopy(probe.net).double()

        def run(images: Tensor) -> Tensor:
            torch.manual_seed(seed)
            picked: Tensor = net(images)[self.place]
            return torch.view_as_real(picked.resolve_conj()).sum(-1) if picked.is_complex() else picked

        depends = influence(run, probe.images.double())
        elements = torch.arange(len(depends))
        own, others = depends[elements, self.sample], depends[elements, 1 - self.sample]
        if not self.value.is_content:
            own = own | others
        elif bool(others.any()) and not self.may_be_less:
            raise WrongRuleError(
                f"output {self.place} depends on other samples of the batch, which labels cannot express"
            )
        own = self._over_channels(own)
        shares = self.shares if self.value.is_content else torch.zeros_like(own, dtype=torch.float64)
        self.said, self.true = self.said | (shares > _MORE), self.true | own
        lost = own & ~(shares > _LESS) & ~self.exempt[:, None]
        if bool(lost.any()) and not self.may_be_less:
            self._disagree("leaves out", lost)

    def _over_channels(self, depends: Tensor) -> Tensor:
        """The dependence of elements (elements, pixels), joined over the channels of each token."""
        whole = depends.view(*self.value.shape, -1)
        for axis in self.channels:
            whole = whole.any(axis % len(self.value.shape), keepdim=True)
        return whole.expand(*self.value.shape, -1).flatten(0, -2)

    @property
    def extra(self) -> Tensor:
        """Tokens that labels count and that no output depended on in any trial so far."""
        return self.said & ~self.true & ~self.exempt[:, None]

    def conclude(self) -> None:
        """WrongRuleError if a label counts a token that mattered in no trial."""
        if bool(self.extra.any()):
            self._disagree("counts", self.extra)

    def _disagree(self, does: str, where: Tensor) -> None:
        element, token = (int(i) for i in where.nonzero()[0])
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(element), self.value.shape))
        raise WrongRuleError(
            f"output {self.place}, element {index}: its label {does} token {token}.\n"
            f"  in the label:      tokens {self.said[element].nonzero().flatten().tolist()}\n"
            f"  output depends on: tokens {self.true[element].nonzero().flatten().tolist()}\n" + _REMEDIES[does]
        )


def _count(value: Value) -> int:
    return int(torch.Size(value.shape).numel())
