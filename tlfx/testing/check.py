"""A rule against ground truth that the check derives itself, from what the operator does to its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from tlfx.errors import InputError, WrongRuleError
from tlfx.propagate.values import IMAGE, NONE, Value
from tlfx.testing.content import Content, default_layout, from_pixels, to_pixels
from tlfx.testing.influence import influence
from tlfx.testing.label_probe import LabelProbe

__all__ = ["check_rule"]

BATCH = 2
_LAWS, _LESS, _MORE = 1e-4, 1e-12, 1e-6
"""How far labels may be off, and shares that count as none."""
_REMEDIES = {
    "leaves out": "Mend the rule, or say by less= why labels leave out what the output depends on.",
    "counts": "Mend the rule: this token has never mattered, whatever the inputs.",
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
    """Check the rule of an operator, or of a module, against what the operator does.

    For random inputs the check finds which tokens every output depends on (by autograd, or for decisions by change) and
    which tokens its label is made of, and raises WrongRuleError where they do not agree: where a label leaves out a
    token that the output depends on, where it counts one that the output never depends on, and where the output
    depends on other samples. It also holds the rule to the laws of all labels: rows are convex combinations, linear in
    the mask, each sample's own.

    Args:
        operator: a function of tensors that calls the operator, the operator itself, or a module.
        make_inputs: gives random arguments of the same shapes at every call: a tuple, a dict of keyword arguments or
            one tensor, with a batch of 2. Wrap in :class:`Content` what has image content, and its layout; if nothing
            is, the first floating-point tensor has, as (batch, tokens, channels) or images. Indices and masks are
            taken from the first call.
        less: why labels may leave out tokens that the output depends on (a gate, the statistics of a norm, scores), if
            they may.
        channels: axes of the outputs that hold channels of one token, which count together; else each element counts.
        trials: how many random inputs to try at most; what a label counts must matter in one of them.
        seed: of the random inputs.

    Raises WrongRuleError, and what capture and propagation raise.

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
    """The operator as a function of images, its outputs in a list."""
    parts: dict[str, Any] = {"operator": operator} if isinstance(operator, nn.Module) else {}
    parts |= {f"given_{i}": _as_part(x) for i, x in enumerate(inputs.others)}

    def run(images: Tensor, **parts: Any) -> Any:
        function = parts.pop("operator", operator)
        args, kwargs = inputs.call(from_pixels(images, inputs.contents), list(parts.values()))
        outputs = [x for x in tree_leaves(function(*args, **kwargs)) if isinstance(x, Tensor)]
        return [*outputs, images]  # which have content, should no output have any

    return LabelProbe(run, to_pixels(inputs.contents), parts)


class _Inputs:
    """Arguments of an operator: values with content, other tensors, and everything else."""

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
            raise InputError(f"inputs of a check have a batch of {BATCH}, got {[c.batch for c in self.contents]}")

    def call(self, contents: Sequence[Tensor], others: Sequence[Tensor]) -> Any:
        """The arguments with these tensors in place."""
        content, other = iter(contents), iter(others)

        def put(x: Any) -> Any:
            return next(content) if isinstance(x, Content) else next(other) if isinstance(x, Tensor) else x

        return tree_unflatten([put(x) for x in self.leaves], self.spec)


def _with_first_content(leaves: list[Any]) -> list[Any]:
    place = next((i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point()), None)
    if place is None:
        raise InputError("make_inputs gives no floating-point tensor: expected one that can hold image content")
    content = Content(leaves[place], default_layout(leaves[place]))
    return [*leaves[:place], content, *leaves[place + 1 :]]


def _as_part(x: Tensor) -> Tensor:
    return nn.Parameter(x.clone(), requires_grad=False) if x.is_floating_point() else x


def _give(probe: LabelProbe, inputs: _Inputs) -> None:
    """Set a probe to other inputs; indices and masks may be part of its graph and stay."""
    probe.images = to_pixels(inputs.contents)
    for i, x in enumerate(inputs.others):
        if x.is_floating_point():
            getattr(probe.net, f"given_{i}").copy_(x)


def _labels(probe: LabelProbe, mask: Tensor, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    with torch.no_grad():
        return probe.labels(mask)


def _check_laws(probe: LabelProbe, outputs: Sequence[_Output], seed: int) -> None:
    """Shares of every pixel, and the laws that hold for all labels."""
    pixels = probe.images.shape[-1]
    unit = torch.eye(pixels)[None, :, None]
    alone = torch.cat((unit, torch.zeros_like(unit)))
    mask = torch.rand(BATCH, 1, 1, pixels)
    known = [o for o in outputs if o.value.is_content]
    labels = [[la.nan_to_num(0.0) for la in _labels(probe, m, seed)[: len(known)]] for m in (unit, alone, mask)]
    for output, shares, split, mixed in zip(known, *labels, strict=True):
        output.check_laws(shares.flatten(0, -2), split.flatten(0, -2), mixed.flatten(), mask[:, 0, 0].double())


class _Output:
    """One output of an operator: what its labels are said to be made of, and what it truly depends on."""

    def __init__(self, place: int, value: Value, may_be_less: bool, channels: Sequence[int]) -> None:
        self.place, self.value, self.may_be_less, self.channels = place, value, may_be_less, channels
        ids = value.expanded()[0].flatten() if value.is_content else torch.full((_count(value),), NONE)
        self.known, self.sample = ids != NONE, ids % BATCH
        self.exempt = self.known & (ids.div(BATCH, rounding_mode="floor") == IMAGE)
        """Elements with the label of the whole image, whatever they depend on."""
        self.shares = torch.zeros(len(ids), 0)
        self.said = self.true = torch.zeros(len(ids), 1, dtype=torch.bool)

    def check_laws(self, shares: Tensor, split: Tensor, mixed: Tensor, mask: Tensor) -> None:
        """Take shares (elements, pixels), and hold them to convexity, linearity and independence of samples."""
        self.shares = shares
        self._hold("labels are convex combinations", (shares.sum(1) - 1)[self.known], shares.clamp_max(0))
        self._hold("labels are linear in the mask", (shares * mask[self.sample]).sum(1) - mixed)
        self._hold("no label depends on another sample", split - shares * (self.sample == 0)[:, None])

    def _hold(self, law: str, *errors: Tensor) -> None:
        worst = max((float(e.abs().max()) for e in errors if e.numel()), default=0.0)
        if worst > _LAWS:
            raise WrongRuleError(f"output {self.place}: {law}, but the rule breaks this by {worst:.1g}")

    def compare(self, probe: LabelProbe, seed: int) -> None:
        """Labels against the dependence in one trial."""
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
            raise WrongRuleError(f"output {self.place} depends on other samples of the batch, which has no label")
        own = self._over_channels(own)
        shares = self.shares if self.value.is_content else torch.zeros_like(own, dtype=torch.float64)
        self.said, self.true = self.said | (shares > _MORE), self.true | own
        lost = own & ~(shares > _LESS) & ~self.exempt[:, None]
        if bool(lost.any()) and not self.may_be_less:
            self._disagree("leaves out", lost)

    def _over_channels(self, depends: Tensor) -> Tensor:
        """What elements (elements, pixels) depend on, those of one token together."""
        whole = depends.view(*self.value.shape, -1)
        for axis in self.channels:
            whole = whole.any(axis % len(self.value.shape), keepdim=True)
        return whole.expand(*self.value.shape, -1).flatten(0, -2)

    @property
    def extra(self) -> Tensor:
        """What labels count and what has not mattered in any trial so far."""
        return self.said & ~self.true & ~self.exempt[:, None]

    def conclude(self) -> None:
        """What labels count must have mattered in some trial."""
        if bool(self.extra.any()):
            self._disagree("counts", self.extra)

    def _disagree(self, does: str, where: Tensor) -> None:
        element, token = (int(i) for i in where.nonzero()[0])
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(element), self.value.shape))
        raise WrongRuleError(
            f"output {self.place}, element {index}: its label {does} token {token}.\n"
            f"  said by the rule: tokens {self.said[element].nonzero().flatten().tolist()}\n"
            f"  it depends on:    tokens {self.true[element].nonzero().flatten().tolist()}\n" + _REMEDIES[does]
        )


def _count(value: Value) -> int:
    return int(torch.Size(value.shape).numel())
