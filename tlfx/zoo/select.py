"""The models of a sweep: those that match patterns, or the smallest of each family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from tlfx.errors import InputError, ModelError
from tlfx.zoo.models import library, load

__all__ = ["families", "select", "size", "smallest"]

TORCHVISION = "torchvision:"


def select(patterns: Sequence[str]) -> dict[str, str]:
    """A mapping, sorted by name, from every model whose name matches one of the shell patterns to its family.

    Patterns match timm names; patterns with the prefix ``torchvision:`` match torchvision names. Raises InputError if
    no model matches, ModelError without the library.

    >>> select(["test_vit?", "torchvision:swin_?"])["torchvision:swin_t"]
    'torchvision:swin_transformer'
    """
    sources = (p for p in patterns if p.startswith(TORCHVISION)), (p for p in patterns if not p.startswith(TORCHVISION))
    vision, timm = map(list, sources)
    known = {**(_timm_families() if timm else {}), **(_torchvision_families() if vision else {})}
    selected = {name: family for name, family in known.items() if any(fnmatchcase(name, p) for p in patterns)}
    if not selected:
        raise InputError(f"no model matches {' or '.join(patterns)}; use patterns such as 'vit_*' or 'torchvision:*'")
    return dict(sorted(selected.items()))


def families(selected: dict[str, str]) -> dict[str, list[str]]:
    """The models of each family.

    >>> families({"test_vit": "vision_transformer"})
    {'vision_transformer': ['test_vit']}
    """
    by_family: dict[str, list[str]] = {}
    for name, family in selected.items():
        by_family.setdefault(family, []).append(name)
    return dict(sorted(by_family.items()))


def smallest(names: Iterable[str], done: Callable[[], None] = lambda: None) -> str | None:
    """The model with the fewest parameters, None if none can be built; ``done`` is called after each.

    Models are built on the meta device; building stops when a model is larger than the smallest one so far.

    >>> smallest(["vit_tiny_patch16_224", "test_vit"])
    'test_vit'
    """
    best, fewest = None, None
    for name in names:
        parameters = size(name, fewest)
        if parameters is not None and (fewest is None or parameters < fewest):
            best, fewest = name, parameters
        done()
    return best


def size(name: str, limit: int | None = None) -> int | None:
    """Number of parameters of a model, None if it cannot be built or has ``limit`` or more.

    >>> size("test_vit")
    371240
    """
    count = 0

    def add(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal count
        count += parameter.numel() if parameter is not None else 0
        if limit is not None and count >= limit:
            raise _TooLargeError

    hook = register_module_parameter_registration_hook(add)
    try:
        model, _ = load(name, device="meta")
    except ModelError:
        return None
    finally:
        hook.remove()
    return sum(p.numel() for p in model.parameters())


class _TooLargeError(Exception):
    """A model under construction has more parameters than the limit."""


def _timm_families() -> dict[str, str]:
    """The family of every timm model: the file that defines it."""
    timm = library("timm", "the list of timm models")
    return {name: family for family in timm.list_modules() for name in timm.list_models(module=family)}


def _torchvision_families() -> dict[str, str]:
    models = library("torchvision.models", "the list of torchvision models")
    builders = {name: models.get_model_builder(name) for name in models.list_models()}
    return {
        TORCHVISION + n: TORCHVISION + b.__module__.removeprefix("torchvision.models.") for n, b in builders.items()
    }
