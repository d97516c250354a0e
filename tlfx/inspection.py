"""The public function that reports on a model, built or by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tlfx.capture.images import check_names
from tlfx.errors import InputError
from tlfx.report import Report
from tlfx.report import inspect as inspect_module
from tlfx.zoo.models import load, without_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

__all__ = ["inspect"]


def inspect(
    model: nn.Module | str,
    example: Any = None,
    input_size: Sequence[int] | None = None,
    on_unknown: Literal["error", "pointwise"] = "error",
    *,
    training: bool | None = None,
    kwargs: Mapping[str, Any] | None = None,
    paths: Sequence[str] = (),
    images: str | int | Sequence[str | int] | None = None,
) -> Report:
    """Report the effect of every operator of a model on tokens and labels (Table 10 of arXiv 2210.06455).

    Only shapes and integer maps are computed, so that a model on the meta device can be inspected without memory for
    its parameters. The model is not changed; the report is for its current mode, training or evaluation. Printing the
    report shows the text of ``tlfx inspect``.

    Args:
        model: any module with images (batch, channels, height, width) among its inputs, or video; or a name as the
            command line takes it: a timm name, ``"torchvision:NAME"`` or ``"package.module:factory"``.
        example: images, a tuple of arguments or a dict of keyword arguments, with a batch of at least 2.
        input_size: instead of an example, (size,), (height, width), (channels, height, width) or (channels, frames,
            height, width); by default ``pretrained_cfg["input_size"]`` of the model, else (3, 224, 224).
        on_unknown: ``"error"``, or ``"pointwise"`` to treat operators without a rule that keep the shape as
            element-wise.
        training: the mode to report on; None for the mode of the model, which is training for a model by name.
        kwargs: arguments of a model by name.
        paths: directories that a model by name is imported from.
        images: the arguments of the example that are images, as in :func:`tlfx.align`.

    Raises:
        InputError: the arguments hold no images, the size is invalid, or options of names are given with a module.
        ModelError: no model has the name, or it cannot be built.
        CaptureError: the model cannot be captured as a graph.
        UnknownOperatorError: an operator that receives image content has no rule.
        ProvenanceError: image content cannot be followed.

    >>> from torch import nn
    >>> report = inspect(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU()), input_size=(32, 32))
    >>> [(node.short, node.operation.value, node.after) for node in report.select(only="aggregation,pointwise")]
    [('conv2d', 'aggregation', '8×8 × 8'), ('gelu', 'pointwise', '8×8 × 8')]
    >>> inspect("test_vit", kwargs={"depth": 2}).input_shape
    (3, 160, 160)
    """
    named = check_names(images)
    if not isinstance(model, str):
        if kwargs is not None or paths:
            raise InputError("kwargs and paths are for models by name, and a module was given: build it with them")
        return _inspect_in_mode(model, training, example, input_size, on_unknown, named)

    def of(device: str) -> Report:
        built, blank = load(model, kwargs, paths, input_size, device)
        return _inspect_in_mode(built, training, blank if example is None else example, None, on_unknown, named)

    return without_weights(of) if example is None else of("cpu")


def _inspect_in_mode(model: nn.Module, training: bool | None, *arguments: Any) -> Report:
    """The report in a mode, which is restored."""
    if training is None or training == model.training:
        return inspect_module(model, *arguments)
    modes = {module: module.training for module in model.modules()}
    try:
        return inspect_module(model.train(training), *arguments)
    finally:
        for module, mode in modes.items():
            module.training = mode
