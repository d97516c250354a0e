"""Attributes of Python that code gives to tensors: those of parameters and buffers are there while a forward is
captured, and those that a forward gives to what it returns or keeps are refused, since an aligned call has none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from tlfx._torch import is_fake
from tlfx.capture.callers import place
from tlfx.capture.model_class import class_name
from tlfx.capture.surroundings import package_of_caller, replaced
from tlfx.errors import CaptureError

__all__ = ["TensorAttributes", "copy_attributes"]


def copy_attributes(tensors: Mapping[str, Tensor], stand_ins: Iterable[tuple[str, Tensor]]) -> None:
    """Give the tensors without data that stand for parameters and buffers in a capture the attributes of these."""
    for path, stand_in in stand_ins:
        for name, value in vars(tensors[path]).items() if path in tensors else ():
            if stand_in is not tensors[path]:
                vars(stand_in).setdefault(name, value)


class TensorAttributes:
    """Records the attributes that a forward gives to tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._given: list[tuple[Tensor, str, str]] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record attributes in the context."""

        def give(tensor: Tensor, name: str, value: Any) -> None:
            if package_of_caller() != "torch" and is_fake(tensor) and not hasattr(type(tensor), name):
                self._given.append((tensor, name, place(self._model)))
            object.__setattr__(tensor, name, value)

        with replaced(Tensor, "__setattr__", give):
            yield

    def check(self, lasting: Iterable[Any]) -> None:
        """Raise CaptureError if any of the tensors that last longer than the forward was given an attribute."""
        known = set(map(id, lasting))
        for tensor, name, where in self._given:
            if id(tensor) in known:
                raise CaptureError(
                    f"the forward of {class_name(self._model)} gives the attribute {name!r} to a tensor that it "
                    f"returns or keeps, which an aligned call does not\n{where}\n"
                    f"Return the value, or keep it on a module (self.{name} = ...)."
                )
