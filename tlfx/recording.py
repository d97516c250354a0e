"""Labels on the way through a model: at the outputs of its modules, or at nodes of its graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tlfx.aligned import planner_of
from tlfx.capture.images import call_for
from tlfx.errors import InputError, TargetError
from tlfx.propagate.observer import EVERY_MODULE, LabelRecorder

__all__ = ["labels_of", "record"]


@contextmanager
def record(model: nn.Module, at: str | Sequence[str] | None = None) -> Iterator[Mapping[str, Tensor]]:
    """Record the labels inside an aligned model: a mapping from names to labels, filled at every aligned call.

    Inside the context each ``model(images, target)`` with a :class:`tlfx.MixedTarget` leaves the labels of that call in
    the mapping, in place of those of the call before; a plain call leaves it as it is. Logits are the
    same bit for bit with and without; soft targets to rounding, since labels that no output reads are computed too. The
    first call writes a separate graph, which later contexts with the same ``at`` use again. After the context the
    mapping stays, and nothing else holds its labels.

    A label is a detached float32 tensor (batch, *positions) in [0, 1], the share of the first image at each position of
    what the module returns: (batch, tokens) for (batch, tokens, channels), (batch, height, width) for (batch, channels,
    height, width) and for (batch, height, width, channels), (batch,) for (batch, channels). Channels that carry
    different labels are averaged. The batch comes first wherever the value has it; windows merged into it stay an axis
    beside it, (batch, windows, tokens). Heads are an axis too: (batch, heads, tokens).

    Names are paths of modules, as in ``model.named_modules()``. Of a module that runs several times the last call
    counts; of several tensors that it returns, the last to be computed.

    Args:
        model: a model that :func:`tlfx.align` has aligned.
        at: glob pattern or patterns of module paths, such as ``"blocks.*.attn"``; a pattern that matches no module is
            one of graph nodes, by their names in ``tlfx code``. None records every module whose output has a label.

    Raises:
        InputError: the model is not aligned, or ``at`` is not a pattern; at an aligned call, a pattern matches nothing.

    >>> import tlfx, torch
    >>> model = tlfx.align(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)))
    >>> mask = torch.ones(1, 1, 8, 8)
    >>> mask[..., :4] = 0
    >>> target = tlfx.MixedTarget(first=torch.tensor([0]), second=torch.tensor([1]), mask=mask, num_classes=2)
    >>> with record(model, at="0") as labels:
    ...     logits, soft_target = model(torch.rand(1, 3, 8, 8), target)
    >>> labels["0"]
    tensor([[[0., 1.],
             [0., 1.]]])
    """
    planner = planner_of(model)
    recorder = LabelRecorder(_patterns(at))
    planner.recorders.append(recorder)
    try:
        yield recorder.labels
    finally:
        planner.recorders.remove(recorder)


def labels_of(
    model: nn.Module, images: Any, mask: Tensor, at: str | Sequence[str] | None = None
) -> tuple[Any, Any, dict[str, Tensor]]:
    """Push any initial label through an aligned model: its output, the labels of its output, and those on the way.

    ``mask`` (batch or 1, K, *size) holds the label of every pixel in K channels, which are followed independently and
    linearly; they may be outside [0, 1]. ``images`` are what the model takes (a tensor, a tuple of arguments or a dict
    of keyword arguments). The labels of the output, in its structure, have its shape without the channel axis and K
    last, None where it carries none; those on the way, by name as in :func:`record`, have the shape
    (batch, *positions, K).

    Raises InputError as :func:`record` does, TargetError for a mask of another shape.

    >>> import tlfx, torch
    >>> model = tlfx.align(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(2)))
    >>> columns = torch.eye(4).view(1, 4, 1, 4).expand(1, 4, 2, 4)
    >>> _, _, labels = labels_of(model, torch.rand(1, 3, 2, 4), columns)
    >>> labels["0"]
    tensor([[[[0.5000, 0.5000, 0.0000, 0.0000],
              [0.0000, 0.0000, 0.5000, 0.5000]]]])
    """
    planner = planner_of(model)
    call = call_for(images, model, planner.options.images)
    given = call.images
    if mask.dim() != given.dim() or mask.shape[0] not in (1, call.batch) or mask.shape[2:] != given.shape[2:]:
        size = ", ".join(str(s) for s in given.shape[2:])
        raise TargetError(
            f"mask has shape {tuple(mask.shape)}, expected ({call.batch} or 1, channels, {size}): one label for "
            "each pixel of the images"
        )
    plan = planner.plan(model, call, _patterns(at))
    output, shares, labels = plan.run(call, mask)
    return output, plan.structured(shares), dict(zip(plan.observed.ids, labels, strict=True))


def _patterns(at: str | Sequence[str] | None) -> tuple[str, ...]:
    given = [EVERY_MODULE] if at is None else [at] if isinstance(at, str) else at
    if not isinstance(given, Sequence) or not given or not all(isinstance(p, str) for p in given):
        raise InputError(f"at={at!r}: expected patterns of modules or graph nodes such as 'blocks.*', or None for all")
    return tuple(given)
