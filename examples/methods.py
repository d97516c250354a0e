"""Methods of training: a mixer, and the source of the target of a mixed picture."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

from mixers import MIXERS
from torch import nn

import tlfx
from tlfx.assign import AGREEMENT, TargetAssigner
from tlfx.assign import METHODS as TARGETS
from tlfx.policy import DEFAULT, policy_name

__all__ = ["Method", "read_method"]

FIELDS = tuple(field.name for field in fields(tlfx.Policy))
FORM = "[MIXER/]TARGET or [MIXER/]aligned:FIELD=VALUE[,FIELD=VALUE…]"
LAYERS, SCALE, BLEND = "layers", "scale", "blend"
"""Further fields of an aligned target: attention layers by number, such as 1+3 or -1, a factor of the target, and its
share beside that of the area."""


@dataclass(frozen=True)
class Method:
    """One of MIXERS and one of the targets of tlfx.assign; the other fields apply to aligned targets only.

    Attributes:
        layers: the attention layers that are aligned, by number; all if there are none.
        scale: factor of the target in the loss.
        blend: see :class:`tlfx.assign.TargetAssigner`.

    >>> str(Method("saliencymix", "aligned", tlfx.Policy(heads="norm")))
    'saliencymix/aligned:heads=norm'
    """

    mixer: str = "cutmix"
    target: Literal["plain", "transmix", "aligned"] = "plain"
    policy: tlfx.Policy = field(default_factory=tlfx.Policy)
    layers: tuple[int, ...] = ()
    scale: float = 1.0
    blend: float | Literal["agreement"] = 1.0

    def __str__(self) -> str:
        """The text that :meth:`parse` reads; equal methods have equal texts."""
        changes = [] if self.policy == DEFAULT else policy_name(self.policy).split(", ")
        changes += [f"{LAYERS}={'+'.join(map(str, self.layers))}"] if self.layers else []
        changes += [f"{SCALE}={self.scale:g}"] if self.scale != 1 else []
        changes += [f"{BLEND}={self.blend}"] if self.blend != 1 else []
        mixer = "" if self.mixer == "cutmix" else f"{self.mixer}/"
        return f"{mixer}{self.target}:{','.join(changes)}" if changes else f"{mixer}{self.target}"

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read ``[MIXER/]TARGET`` or ``[MIXER/]aligned:FIELD=VALUE[,FIELD=VALUE…]`` with fields of tlfx.Policy, layers
        (``layers=1+3``), a scale, or a blend (``blend=0.5``, ``blend=agreement``).

        Raises ValueError, or its subclass tlfx.InputError, for any other text.

        >>> Method.parse("aligned:residual=norm,heads=norm").policy
        Policy(residual='norm', heads='norm', weights='absolute', aggregation='uniform', values='equal')
        >>> Method.parse("mixup/plain").mixer
        'mixup'
        >>> Method.parse("aligned:layers=1+-1,scale=64").layers
        (1, -1)
        >>> str(Method.parse("aligned:blend=agreement,residual=norm"))
        'aligned:residual=norm,blend=agreement'
        """
        mixer, rest = text.split("/", 1) if "/" in text else ("cutmix", text)
        target, colon, given = rest.partition(":")
        if mixer not in MIXERS or target not in TARGETS or (colon and not (given and target == "aligned")):
            raise ValueError(
                f"{text!r} is not a method: expected {FORM}, with a mixer of {', '.join(MIXERS)} and a target of "
                f"{', '.join(TARGETS)}"
            )
        changes = [_read_field(text, part) for part in given.split(",") if given]
        twice = [name for name, count in Counter(name for name, _ in changes).items() if count > 1]
        if twice:
            raise ValueError(f"{text!r} sets {', '.join(twice)} twice")
        given_fields: Any = dict(changes)
        own = {name: given_fields.pop(name) for name in READERS if name in given_fields}
        return cls(mixer, cast(Any, target), tlfx.Policy(**given_fields), **own)

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model, aligned in place if the target requires it."""
        if self.target == "aligned":
            return tlfx.align(model, policy=self.policy, layers=self.layers or None)
        return TargetAssigner(self.target).prepare(model)


def read_method(text: str) -> Method:
    """As :meth:`Method.parse`, with errors of the type that argparse shows."""
    try:
        return Method.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _read_field(method: str, part: str) -> tuple[str, Any]:
    """Name and value of ``FIELD=VALUE``; the policy checks its values."""
    name, _, value = part.partition("=")
    if name in READERS:
        return name, READERS[name](method, value)
    if name not in FIELDS:
        raise ValueError(
            f"{method!r}: {part!r} is not a field of tlfx.Policy; expected one of {', '.join((*FIELDS, *READERS))}"
        )
    return name, value


def _read_layers(method: str, text: str) -> tuple[int, ...]:
    numbers = text.split("+")
    if not all(number.removeprefix("-").isdecimal() for number in numbers):
        raise ValueError(f"{method!r}: {LAYERS}={text} is not a list of attention layers, such as 1+3 or -1")
    return tuple(map(int, numbers))


def _read_number(text: str) -> float:
    """The number of a text; NaN if it is none, which no bound contains."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_scale(method: str, text: str) -> float:
    scale = _read_number(text)
    if not 0 < scale < math.inf:
        raise ValueError(f"{method!r}: {SCALE}={text} is not a positive number")
    return scale


def _read_blend(method: str, text: str) -> float | str:
    if text == AGREEMENT:
        return text
    share = _read_number(text)
    if not 0 <= share <= 1:
        raise ValueError(f"{method!r}: {BLEND}={text} is neither a share from 0 to 1 nor {AGREEMENT}")
    return share


READERS: dict[str, Callable[[str, str], Any]] = {LAYERS: _read_layers, SCALE: _read_scale, BLEND: _read_blend}
