"""What a run trains against: the area of the mixed parts, or the target aligned under a label policy."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, fields

import tlfx

__all__ = ["Method"]

FIELDS = tuple(field.name for field in fields(tlfx.Policy))


@dataclass(frozen=True)
class Method:
    """Plain CutMix if there is no policy, else aligned under it.

    >>> str(Method(tlfx.Policy(heads="norm")))
    'aligned:heads=norm'
    """

    policy: tlfx.Policy | None

    def __str__(self) -> str:
        """The text that :meth:`parse` reads; policies that are equal have one text."""
        if self.policy is None:
            return "plain"
        default = asdict(tlfx.Policy())
        changes = [f"{name}={value}" for name, value in asdict(self.policy).items() if value != default[name]]
        return f"aligned:{','.join(changes)}" if changes else "aligned"

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read ``plain``, ``aligned`` or ``aligned:FIELD=VALUE[,FIELD=VALUE…]`` with fields of tlfx.Policy.

        Raises ValueError, tlfx.InputError among them, for anything else.

        >>> Method.parse("aligned:residual=norm,heads=norm").policy
        Policy(residual='norm', heads='norm', weights='absolute', aggregation='uniform')
        """
        name, _, given = text.partition(":")
        if text == "plain":
            return cls(None)
        if name != "aligned" or (":" in text and not given):
            raise ValueError(f"{text!r} is no method: expected plain, aligned or aligned:FIELD=VALUE[,FIELD=VALUE…]")
        changes = [_read_field(text, part) for part in given.split(",") if given]
        twice = [name for name, count in Counter(name for name, _ in changes).items() if count > 1]
        if twice:
            raise ValueError(f"{text!r} sets {', '.join(twice)} twice")
        return cls(tlfx.Policy(**dict(changes)))


def _read_field(method: str, part: str) -> tuple[str, str]:
    """Name and value of ``FIELD=VALUE``; the value is left for the policy to check."""
    name, _, value = part.partition("=")
    if name not in FIELDS:
        raise ValueError(f"{method!r}: {part!r} sets no field of tlfx.Policy, expected one of {', '.join(FIELDS)}")
    return name, value
