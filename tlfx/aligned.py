"""Aligned models: the same module, of a class whose forward also takes a target and returns the aligned target."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import nn

from tlfx.calls.plans import Planner
from tlfx.calls.positional import plain_call, split_labels
from tlfx.capture.alignable import check_alignable
from tlfx.capture.arguments import Call
from tlfx.capture.images import check_names
from tlfx.capture.model_class import CHOSEN, own_parameters
from tlfx.capture.sharding import casts_arguments
from tlfx.errors import InputError, TargetError
from tlfx.mix.target import MixedTarget
from tlfx.policy import Policy, check_policy
from tlfx.propagate.options import Options

__all__ = ["Aligned", "align", "aligned_code", "opened", "planner_of", "unalign"]

M = TypeVar("M", bound=nn.Module)


def align(
    model: M,
    *,
    example: Any = None,
    layers: Sequence[str | int] | None = None,
    policy: Policy | str | None = None,
    on_unknown: Literal["error", "pointwise"] = "error",
    attention: Literal["auto", "fused", "reuse"] = "auto",
    ignore_state: Sequence[str] = (),
    images: str | int | Sequence[str | int] | None = None,
) -> M:
    """Align a model in place and return it: the same object with the same parameters, of a subclass of its class.

    ``model(images)`` does not change, in training and evaluation. ``model(images, target)`` returns
    ``(output, soft_target)``: the model's own output, bit for bit, and the target that reaches it (TL-Align, arXiv
    2210.06455), a detached float32 tensor (batch, classes) with rows that sum to 1. A dense output (batch, channels,
    height, width) gets (batch, classes, height, width); tuples, lists, dicts and dataclasses of outputs get the same
    structure of targets, with None for outputs without image content or of a type other than floating point.

    The target is a :class:`tlfx.MixedTarget`, anywhere among the arguments or as ``target=``; integer labels (batch,)
    and soft labels (batch, classes) are taken as ``target=`` too, or after all arguments that the model's own forward
    takes, and come back as plain soft targets. All other arguments are passed to the model's own forward. The first
    call captures the model (some seconds). Calls with other image sizes, types, devices or modes capture it again;
    calls with other batch sizes do not. A model keeps the graphs of its 16 most recently used kinds of call.

    Args:
        model: any module with images (batch, channels, height, width) among its inputs; video (batch, channels,
            frames, height, width), or (batch, frames, channels, height, width) as a mask that differs from frame to
            frame shows, is supported too.
        example: images, a tuple of arguments or a dict of keyword arguments to capture now.
        layers: attention layers to align: glob patterns of modules such as ``"blocks.[0-5]"``, or numbers in order of
            execution (−1 for the last). All others leave labels in place (Table 8).
        policy: how labels are combined, by default as in the paper: a :class:`tlfx.Policy`, or ``"influence"``, the
            rules that agree best with the influence of each image (residual="norm", values="deviation").
        on_unknown: ``"error"``, or ``"pointwise"`` to treat operators without a rule as point-wise if they keep the
            shape.
        attention: how the labels of fused attention (``scaled_dot_product_attention``) are computed. ``"fused"``: by a
            second pass without autograd over a few samples at a time, so that no tensor (batch, heads, queries, keys)
            is allocated. ``"reuse"``: as extra columns of the value in the model's own pass, where this does not change
            a bit of its output (the CPU's float32 kernel, at shapes where it rounds the same with and without the
            columns); otherwise as ``"fused"``. ``"auto"``: whichever is faster: ``"reuse"`` on the CPU for more weights
            (batch · heads · queries · keys) than 2¹⁸, else ``"fused"``.
            Attention weights that the graph computes are always reused. Outputs are bit-equal in all cases.
        ignore_state: glob patterns of attributes, such as ``"*.steps"``, that a forward changes and that aligned calls
            leave as they are. Tensors that a forward keeps are there after an aligned call as after a plain one; data
            that changes at every call, such as a counter, is refused unless a pattern matches it.
        images: the arguments that are mixed, by name or by position, if several tensors may be: one, or all that were
            mixed by the same mask. A name in a dictionary is its key. By default the one tensor that the mask fits.

    Raises:
        InputError: the model is not a module, an option is unknown, images have the wrong rank or type, or several
            tensors may be the mixed images.
        TargetError: the target does not fit the images or the classes.
        CaptureError: the model cannot be captured as a graph.
        UnknownOperatorError: an operator that receives image content has no rule.
        NoContentError: no output carries image content.

    >>> import torch
    >>> model = align(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)))
    >>> mask = torch.ones(1, 1, 8, 8)
    >>> mask[..., :4] = 0
    >>> target = MixedTarget(first=torch.tensor([0]), second=torch.tensor([1]), mask=mask, num_classes=2)
    >>> logits, soft_target = model(torch.rand(1, 3, 8, 8), target)
    >>> soft_target
    tensor([[0.5000, 0.5000]])
    """
    check_alignable(model)
    options = _options(layers, policy, on_unknown, attention, ignore_state, images)
    module: nn.Module = unalign(model)
    module.__class__ = _aligned_class(type(module))
    module.__dict__["_tlfx"] = Planner(options)
    if "forward" in vars(module):
        module.__dict__[CHOSEN] = module.__dict__.pop("forward")
    if example is not None:
        planner_of(module).plan_example(module, example)
    return model


def unalign(model: M) -> M:
    """Undo :func:`align` in place and return the model; a model that is not aligned is returned unchanged.

    >>> type(unalign(align(nn.Identity())))
    <class 'torch.nn.modules.linear.Identity'>
    """
    module: nn.Module = model
    if isinstance(module, Aligned):
        del module.__dict__["_tlfx"]
        if CHOSEN in vars(module):
            module.__dict__["forward"] = module.__dict__.pop(CHOSEN)
        module.__class__ = _plain_class(type(module))  # type: ignore[assignment]
    return model


def _plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class without alignment; a class derived from an aligned class (by fully_shard) is derived from its base."""
    if "_tlfx_base" in vars(kind):
        base: type[nn.Module] = vars(kind)["_tlfx_base"]
        return base
    bases = tuple(_plain_class(b) if issubclass(b, Aligned) else b for b in kind.__bases__)
    names = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    return type(kind.__name__, bases, names)


def aligned_code(model: nn.Module, example: Any = None) -> str:
    """Python code of the aligned graph that ran last, or of the graph for ``example`` (as in :func:`align`).

    Raises InputError if the model is not aligned, or has not been captured and no example is given.
    """
    planner = planner_of(model)
    plan = planner.latest if example is None else planner.plan_example(model, example)
    if plan is None:
        raise InputError("the model has not been captured yet: call it with a target, or pass example=images")
    return str(plan.graph_module.code)


class Aligned(nn.Module):
    """Base of all aligned classes: ``isinstance(model, Aligned)`` tells whether a model is aligned."""

    _tlfx_base: type[nn.Module]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's hooks and forward; hooks of fully_shard in mixed precision must not cast a target."""
        if casts_arguments(self):
            args = tuple(_Sealed(a) if isinstance(a, MixedTarget) else a for a in args)
            kwargs = {k: _Sealed(v) if isinstance(v, MixedTarget) or k == "target" else v for k, v in kwargs.items()}
        return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, target: Any = None, **kwargs: Any) -> Any:
        """The model's own forward, or ``(output, soft_target)`` if a target is among the arguments."""
        args, target, kwargs = tuple(map(opened, args)), opened(target), {k: opened(v) for k, v in kwargs.items()}
        targets: list[Any] = [a for a in (*args, *kwargs.values()) if isinstance(a, MixedTarget)]
        args = tuple(a for a in args if not isinstance(a, MixedTarget))
        kwargs = {k: v for k, v in kwargs.items() if not isinstance(v, MixedTarget)}
        if target is not None and not isinstance(target, MixedTarget) and _takes_target(self):
            kwargs = {**kwargs, "target": target}
        elif target is not None:
            targets.append(target)
        if not targets and len(args) > 1 and not torch.compiler.is_compiling():  # Dynamo traces no signatures
            args, labels = split_labels(self, args)
            targets.extend(labels)
            if self.training and any(x.is_floating_point() for x in labels):
                planner_of(self).warn_once(UNMIXED)
        if not targets:
            return plain_call(self, args, kwargs)
        if len(targets) > 1:
            raise TargetError(f"{len(targets)} targets were given, expected one")
        return planner_of(self).run(self, Call.of(*args, **kwargs), targets[0])

    def _get_name(self) -> str:
        """The name that printing shows; ``__name__`` is that of the base, which libraries write into checkpoints."""
        return type(self).__qualname__

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles hold the model and the options; graphs are captured again."""
        state = {k: v for k, v in self.__dict__.items() if k != "_tlfx"}
        return _rebuilt, (self._tlfx_base, planner_of(self).options), state


UNMIXED = (
    "soft labels were given as the target of a training step and are returned as they are, since they have no mask. If "
    "timm.data.Mixup has mixed the images, use tlfx.mix.Mixup instead"
)


def _takes_target(model: nn.Module) -> bool:
    """Whether the model's own forward has a parameter named target, which receives every target but a mixed one."""
    return any(parameter.name == "target" for parameter in own_parameters(model))


class _Sealed:
    """Wraps a target so that hooks do not recurse into it, as they do into dictionaries and dataclasses."""

    def __init__(self, content: Any) -> None:
        self.content = content


def opened(argument: Any) -> Any:
    """The original argument: unwrapped, or a target again if a hook has rebuilt it as a plain dictionary."""
    if isinstance(argument, _Sealed):
        return argument.content
    is_target = type(argument) is dict and argument.keys() >= {"mask", "num_classes", "smoothing"}
    return MixedTarget(argument) if is_target else argument


def _rebuilt(base: type[nn.Module], options: Options) -> nn.Module:
    model = base.__new__(base)
    model.__class__ = _aligned_class(base)
    model.__dict__["_tlfx"] = Planner(options)
    return model


def _aligned_class(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a module's class whose forward takes a target, made once."""
    kind = _CLASSES.get(base)
    if kind is None:
        kind = _CLASSES[base] = _make_class(base)
    return kind


_CLASSES: WeakValueDictionary[type[nn.Module], type[nn.Module]] = WeakValueDictionary()
"""Aligned classes by the classes that were aligned, as long as there is a model of them."""


def _make_class(base: type[nn.Module]) -> type[nn.Module]:
    @functools.wraps(base.forward)
    def forward(self: Aligned, *args: Any, target: Any = None, **kwargs: Any) -> Any:  # docstring: that of the model
        return Aligned.forward(self, *args, target=target, **kwargs)

    signature = inspect.signature(base.forward)
    parameters = list(signature.parameters.values())
    if "target" not in signature.parameters:
        extra = inspect.Parameter("target", inspect.Parameter.KEYWORD_ONLY, default=None)
        variadic = [p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
        # a keyword-only parameter must come before **kwargs
        parameters = [p for p in parameters if p not in variadic] + [extra, *variadic]
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    names = {
        "forward": forward,
        "_tlfx_base": base,
        "__module__": base.__module__,
        "__qualname__": f"Aligned{base.__name__}",
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (Aligned, base), names)


def planner_of(model: nn.Module) -> Planner:
    """The planner of an aligned model. Raises InputError for any other model."""
    if not isinstance(model, Aligned):
        raise InputError(f"{type(model).__name__} is not aligned: call tlfx.align(model) first")
    planner: Planner = model.__dict__["_tlfx"]
    return planner


def _options(
    layers: Sequence[str | int] | None,
    policy: Policy | str | None,
    on_unknown: str,
    attention: str,
    ignore_state: Sequence[str],
    images: str | int | Sequence[str | int] | None,
) -> Options:
    for name, value, known in (
        ("on_unknown", on_unknown, ("error", "pointwise")),
        ("attention", attention, ("auto", "fused", "reuse")),
    ):
        if value not in known:
            raise InputError(f"{name}={value!r} is unknown, expected one of {', '.join(map(repr, known))}")
    if isinstance(layers, str | int):
        layers = (layers,)
    if layers is not None and not all(isinstance(x, str | int) and not isinstance(x, bool) for x in layers):
        raise InputError(
            f"layers={layers!r}: expected module patterns such as 'blocks.0' or numbers of attention layers"
        )
    if isinstance(ignore_state, str) or not all(isinstance(x, str) for x in ignore_state):
        raise InputError(f"ignore_state={ignore_state!r}: expected a list of patterns of attributes such as '*.steps'")
    return Options(
        None if layers is None else tuple(layers),
        check_policy(policy),
        on_unknown,
        attention,
        ignore_state=tuple(ignore_state),
        images=check_names(images),
    )
