"""Reports on the operators of a model, their tokens and labels, as data, text and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tlfx.aligned import Aligned
from tlfx.capture.export import Captured, capture
from tlfx.errors import InputError, ProvenanceError
from tlfx.propagate import Options, Propagation, propagate
from tlfx.report.build import nodes_of, outputs_of
from tlfx.report.data import NodeReport, OutputReport
from tlfx.report.report import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

__all__ = ["NodeReport", "OutputReport", "Report", "inspect"]


def inspect(
    model: nn.Module, example: Any = None, input_size: Sequence[int] | None = None, on_unknown: str = "error"
) -> Report:
    """Report the effect of every operator of a model on tokens and labels (Table 10 of arXiv 2210.06455).

    Only shapes and integer maps are computed, so that a model on the meta device can be inspected without memory for
    its parameters. The model is not changed; the report is for its current mode, training or evaluation.

    Args:
        model: any module with images (batch, channels, height, width) among its inputs, or video.
        example: images, a tuple of arguments or a dict of keyword arguments, with a batch of at least 2.
        input_size: instead of an example, (size,), (height, width), (channels, height, width) or (channels, frames,
            height, width); by default ``pretrained_cfg["input_size"]`` of the model, else (3, 224, 224).
        on_unknown: ``"error"``, or ``"pointwise"`` to treat operators without a rule that keep the shape as
            element-wise.

    Raises:
        InputError: the arguments hold no images, or the size is invalid.
        CaptureError: the model cannot be captured as a graph.
        UnknownOperatorError: an operator that receives image content has no rule.
        ProvenanceError: image content cannot be followed.

    >>> from torch import nn
    >>> report = inspect(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU()), input_size=(32, 32))
    >>> [(node.short, node.operation.value, node.after) for node in report.select(only="aggregation,pointwise")]
    [('conv2d', 'aggregation', '8×8 × 8'), ('gelu', 'pointwise', '8×8 × 8')]
    """
    args, kwargs = _arguments(model, example, input_size)
    images = _images(args, kwargs)
    forward = (model._tlfx_base if isinstance(model, Aligned) else type(model)).forward
    captured = capture(model, forward, args, kwargs, images, any_batch=images.shape[0] != 2)
    found = _propagated(model, captured, on_unknown)
    node = next(n for n in captured.graph_module.graph.nodes if n.name == captured.images)
    batch = int(captured.batch or node.meta["val"].shape[0].node.hint)
    return Report(
        model=type(model).__name__ if not isinstance(model, Aligned) else model._tlfx_base.__name__,
        input_shape=tuple(images.shape[1:]),
        training=model.training,
        batch=batch,
        parameters=sum(p.numel() for p in model.parameters()),
        modules={path: type(module).__name__ for path, module in model.named_modules()},
        nodes=nodes_of(found, batch),
        outputs=outputs_of(found),
    )


def _propagated(model: nn.Module, captured: Captured, on_unknown: str) -> Propagation:
    try:
        return propagate(captured, Options(on_unknown=on_unknown, keep=True))
    except ProvenanceError as error:
        meta = [name for name, buffer in model.named_buffers() if buffer.is_meta]
        if not meta:
            raise
        raise ProvenanceError(
            f"{error}\nThe model is on the meta device, where indices and masks in its buffers ({meta[0]}, …) have no "
            "data: build it on the CPU, or move these buffers there."
        ) from error


def _arguments(model: nn.Module, example: Any, size: Sequence[int] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call: the given example, or images of the model's size."""
    if example is None:
        return (_example(model, size),), {}
    if size is not None:
        raise InputError("both example and input_size were given: pass only one of them")
    if isinstance(example, dict):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, tuple | list) else ((example,), {})


def _example(model: nn.Module, size: Sequence[int] | None) -> Tensor:
    """Two images with the device and type of the model's parameters."""
    import torch

    config = getattr(model, "pretrained_cfg", None) or {}
    own = tuple(config.get("input_size") or (3, 224, 224))
    given = own if size is None else tuple(size)
    full = (*own[:-2], given[0], given[-1]) if len(given) <= 2 else given
    if not 1 <= len(given) <= 4 or min(full) < 1:
        raise InputError(f"input_size={size!r}: expected (size,), (height, width) or (channels, height, width)")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return torch.zeros(2, *full)
    return torch.zeros(2, *full, device=parameter.device, dtype=parameter.dtype)


def _images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The images among the arguments: the first tensor with a height and a width."""
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    found = next((x for x in tensors if x.dim() in (4, 5)), None)
    if found is None or not found.is_floating_point():
        given = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in tensors) or "no tensor"
        raise InputError(f"expected images (batch, channels, height, width) of a floating type, got {given}")
    return found
