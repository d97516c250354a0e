"""Rules in addition to those of installed packages: from files, or for the calls inside a ``with`` block."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tlfx.errors import InputError, RuleConflictError, RuleError
from tlfx.rules.registry import REGISTRY

__all__ = ["load_file", "use_rules"]


@contextmanager
def use_rules(*sources: str | Path | Mapping[Any, Callable[..., Any]], override: bool = False) -> Iterator[None]:
    """Rules in force inside a ``with`` block, in addition to those of installed packages.

    Models that are captured in the block are aligned by these rules; a call outside of it captures them again.

    Args:
        sources: Python files of rules, or mappings from an operator, its name or a class of modules to its rule.
        override: whether rules of a mapping replace those that are known.

    Raises RuleError for a file that cannot be run, RuleConflictError for a second rule of an operator; whatever was
    registered is taken back then too.

    >>> import tlfx, torch
    >>> from torch import nn
    >>> class Mystery(nn.Module):
    ...     def forward(self, x):
    ...         return x.sum() * x
    >>> with tlfx.use_rules({Mystery: lambda op, module, x: op.pointwise(x)}):
    ...     print(tlfx.inspect(nn.Sequential(Mystery()), torch.zeros(2, 3, 4, 4)).counts["pointwise"])
    1
    """
    with REGISTRY.restored():
        for source in sources:
            if isinstance(source, Mapping):
                for operator, function in source.items():
                    REGISTRY.add(operator, function, override)
            elif isinstance(source, str | Path):
                load_file(source)
            else:
                raise InputError(f"use_rules({source!r}): expected a Python file or a mapping from operators to rules")
        yield


def load_file(path: str | Path) -> None:
    """Run a Python file of rules, which registers them. Raises RuleError naming the file if it cannot be run, or if it
    registers none."""
    place = Path(path)
    if not place.is_file():
        raise RuleError(
            f"no file of rules at {place}: expected a Python file that registers rules with tlfx.rules.rule"
        )
    spec = importlib.util.spec_from_file_location(place.stem, place)
    if spec is None or spec.loader is None:
        raise RuleError(f"{place} is not a Python file: rules are functions decorated with tlfx.rules.rule")
    REGISTRY.load()
    module = importlib.util.module_from_spec(spec)
    before = REGISTRY.generation
    added = sys.modules.setdefault(place.stem, module) is module  # dataclasses look up the module that defines them
    try:
        spec.loader.exec_module(module)
    except RuleConflictError:
        raise
    except Exception as error:
        raise RuleError(f"the rules in {place} cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        if added:
            del sys.modules[place.stem]
    if REGISTRY.generation is before:
        raise RuleError(f"{place} registers no rule: expected functions decorated with tlfx.rules.rule")
