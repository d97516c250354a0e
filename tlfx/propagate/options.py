"""How labels are to be aligned."""

from __future__ import annotations

from dataclasses import dataclass

from tlfx.policy import DEFAULT, Policy

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """Options of a propagation; see :func:`tlfx.align`."""

    layers: tuple[str | int, ...] | None = None
    policy: Policy = DEFAULT
    on_unknown: str = "error"
    attention: str = "auto"
    record: tuple[str, ...] = ()
    """Patterns of the modules and nodes whose labels are to be read; see :func:`tlfx.record`."""
    ignore_state: tuple[str, ...] = ()
    """Patterns of state that the capture leaves unchanged; see :func:`tlfx.align`."""
    images: tuple[str | int, ...] | None = None
    """The arguments of the model that are mixed images; see :func:`tlfx.align`."""
    keep: bool = False
    """Whether the maps of all values are kept, for reports; by default each map is freed after its last read."""
