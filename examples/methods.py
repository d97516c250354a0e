"""Methods of training: a mixer, and the source of the target of a mixed picture."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, cast

from mixers import MIXERS
from torch import nn

import tlfx
from tlfx.assign import METHODS as TARGETS
from tlfx.assign import TargetAssigner

__all__ = ["Method", "read_method"]

FIELDS = tuple(field.name for field in fields(tlfx.Policy))
FORM = "[MIXER/]TARGET or [MIXER/]aligned:FIELD=VALUE[,FIELD=VALUE…]"


@dataclass(frozen=True)
class Method:
    """One of MIXERS and one of the targets of tlfx.assign; the policy applies to aligned targets only.

    >>> str(Method("saliencymix", "aligned", tlfx.Policy(heads="norm")))
    'saliencymix/aligned:heads=norm'
    """

    mixer: str = "cutmix"
    target: Literal["plain", "transmix", "aligned"] = "plain"
    policy: tlfx.Policy = field(default_factory=tlfx.Policy)

    def __str__(self) -> str:
        """The text that :meth:`parse` reads; equal methods have equal texts."""
        default = asdict(tlfx.Policy())
        changes = [f"{name}={value}" for name, value in asdict(self.policy).items() if value != default[name]]
        mixer = "" if self.mixer == "cutmix" else f"{self.mixer}/"
        return f"{mixer}{self.target}:{','.join(changes)}" if changes else f"{mixer}{self.target}"

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read ``[MIXER/]TARGET`` or ``[MIXER/]aligned:FIELD=VALUE[,FIELD=VALUE…]`` with fields of tlfx.Policy.

        Raises ValueError, or its subclass tlfx.InputError, for any other text.

        >>> Method.parse("aligned:residual=norm,heads=norm").policy
        Policy(residual='norm', heads='norm', weights='absolute', aggregation='uniform')
        >>> Method.parse("mixup/plain").mixer
        'mixup'
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
        return cls(mixer, cast(Any, target), tlfx.Policy(**given_fields))

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model, aligned in place if the target requires it."""
        if self.target == "aligned":
            return tlfx.align(model, policy=self.policy)
        return TargetAssigner(self.target).prepare(model)


def read_method(text: str) -> Method:
    """As :meth:`Method.parse`, with errors of the type that argparse shows."""
    try:
        return Method.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _read_field(method: str, part: str) -> tuple[str, str]:
    """Name and value of ``FIELD=VALUE``; the policy checks the value."""
    name, _, value = part.partition("=")
    if name not in FIELDS:
        raise ValueError(f"{method!r}: {part!r} is not a field of tlfx.Policy; expected one of {', '.join(FIELDS)}")
    return name, value
