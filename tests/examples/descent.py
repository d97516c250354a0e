"""What a training run descended, step by step, and the gradients it should have had, computed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers

import tlfx
from tlfx.mix.mixer import Mixer

Step = dict[int, tuple[Tensor, Tensor]]
"""Of every parameter, by its id: its value before the step, and the gradient that the optimiser was given."""


@dataclass
class Run:
    """Mixed batches in their order, and the steps of the optimiser."""

    batches: list[tuple[Tensor, tlfx.MixedTarget]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


@contextmanager
def recorded() -> Iterator[Run]:
    """Everything that is mixed and every step of every optimiser, while the context is open."""
    run, before = Run(), {}

    def keep_values(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        before.update({id(p): p.detach().clone() for group in optimizer.param_groups for p in group["params"]})

    def keep_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        run.steps.append({id(p): (before[id(p)], p.grad.clone()) for p in parameters})

    mix = Mixer.__call__

    def keep_batch(self: Mixer, *batch: Any) -> Any:
        run.batches.append(mix(self, *batch))
        return run.batches[-1]

    # Lightning computes gradients inside of the optimiser's step, so they are read after it
    hooks = (
        optimizers.register_optimizer_step_pre_hook(keep_values),
        optimizers.register_optimizer_step_post_hook(keep_gradients),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mixer, "__call__", keep_batch)
        try:
            yield run
        finally:
            for hook in hooks:
                hook.remove()


def named(step: Step, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values before a step and gradients of the model's parameters, by name."""
    pairs = {name: step[id(p)] for name, p in model.named_parameters() if id(p) in step}
    return {name: value for name, (value, _) in pairs.items()}, {name: grad for name, (_, grad) in pairs.items()}


def by_hand(
    model: nn.Module, weights: dict[str, Tensor], images: Tensor, target: tlfx.MixedTarget
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the cross-entropy with the aligned target and with the plain one, in a model with these weights."""
    model.load_state_dict(weights, strict=False)
    output, soft = model.train()(images, target)
    logits, soft = (getattr(x, "logits", x) for x in (output, soft))
    log_probability = logits - logits.exp().sum(1, keepdim=True).log()
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if n in weights), strict=True)
    both = []
    for labels in (soft, target.area()):
        loss = -(labels * log_probability).sum() / len(images)
        both.append(dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True)))
    return both[0], both[1]


def clipped(gradients: dict[str, Tensor], largest: float) -> dict[str, Tensor]:
    """Gradients scaled down so that their joint norm is at most `largest`."""
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    return {name: g * (largest / (norm + 1e-6)).clamp(max=1.0) for name, g in gradients.items()}


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest difference of two sets of gradients, over the largest gradient."""
    assert first.keys() == second.keys()
    largest = max(g.abs().max().item() for g in second.values())
    return max((first[name] - second[name]).abs().max().item() for name in first) / largest
