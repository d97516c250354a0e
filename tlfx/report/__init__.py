"""Reports on the operators of a model, their tokens and labels, as data, text and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tlfx.capture.images import call_for
from tlfx.capture.model_class import class_name
from tlfx.errors import InputError, ProvenanceError
from tlfx.propagate import Options, Propagation
from tlfx.report.build import nodes_of, outputs_of
from tlfx.report.data import NodeReport, OutputReport
from tlfx.report.report import Report
from tlfx.trace import Trace, trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

__all__ = ["NodeReport", "OutputReport", "Report", "inspect"]


def inspect(
    model: nn.Module,
    example: Any = None,
    input_size: Sequence[int] | None = None,
    on_unknown: Literal["error", "pointwise"] = "error",
    images: Sequence[str | int] | None = None,
) -> Report:
    """The report on a module; arguments and errors are those of :func:`tlfx.inspect`, which takes names too.

    >>> from torch import nn
    >>> inspect(nn.Conv2d(3, 8, 4, 4)).counts["aggregation"]
    1
    """
    if example is not None and input_size is not None:
        raise InputError("both example and input_size were given: give one of them")
    call = call_for(_example(model, input_size) if example is None else example, model, images)
    options = Options(on_unknown=on_unknown, keep=True)
    # two images, the default: a capture for this batch size alone takes half the time
    traced = trace(model, call, options, any_batch=call.batch != 2)
    propagation = _propagated(model, traced)
    batch = int(traced.captured.batch or propagation.images.meta["val"].shape[0].node.hint)
    return Report(
        model=class_name(model),
        input_shape=tuple(call.images.shape[1:]),
        training=model.training,
        batch=batch,
        parameters=sum(p.numel() for p in model.parameters()),
        modules={path: type(module).__name__ for path, module in model.named_modules()},
        nodes=nodes_of(propagation, batch),
        outputs=outputs_of(propagation),
    )


def _propagated(model: nn.Module, traced: Trace) -> Propagation:
    """The propagation of a traced model; where it fails for want of data on the meta device, the error says so."""
    try:
        return traced.propagation
    except ProvenanceError as error:
        meta = [name for name, buffer in model.named_buffers() if buffer.is_meta]
        if not meta:
            raise
        raise ProvenanceError(
            f"{error}\nThe model is on the meta device, where indices and masks in its buffers ({meta[0]}, …) have no "
            "data: build it on the CPU, or move these buffers there."
        ) from error


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
