"""Fourier transforms: uniform over all positions, except that a filter between two of them is a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tlfx import runtime
from tlfx.operations import Operation
from tlfx.propagate.values import Spectrum, Value
from tlfx.propagate.verbs.window import Window
from tlfx.runtime import BatchAxis

__all__ = ["Frequency"]


class Frequency(Window):
    """Verbs of Fourier transforms and their inverses."""

    def to_frequencies(self, x: Value, axes: Sequence[int], lengths: Sequence[int] | None = None) -> Value:
        """Every frequency depends on every position along ``axes``; ``lengths`` are those of the transform, by default
        those of the value."""
        axes = [a % len(x.shape) for a in axes]
        out = self.spread(x, axes)
        sizes = [x.shape[a] for a in axes] if lengths is None else list(lengths)
        # a transform that is shorter than its axis cuts positions off
        if not x.is_content or any(n < x.shape[a] for n, a in zip(sizes, axes, strict=True)):
            return out
        return replace(out, spectrum=Spectrum(x, tuple(axes), tuple(sizes)))

    def from_frequencies(self, x: Value, axes: Sequence[int]) -> Value:
        """The inverse transform. Of filtered frequencies: a circular convolution by |K| averaged over channels, where K
        is the inverse transform of the filters. Of any others: every position depends on every frequency."""
        axes = [a % len(x.shape) for a in axes]
        spectrum = x.spectrum
        if spectrum is None or not self._fits(spectrum, x, axes):
            return self.spread(x, axes)
        source = spectrum.source
        where = source.batch_axis
        self.record(Operation.SPATIAL_MIX)
        # ids (lead, *grid), where the grid is the transformed axes
        rest = [a for a in range(len(source.shape)) if a not in (where.axis, *axes)]
        # nothing but the batch on its axis (see _fits): outer and inner have size 1
        ids = source.ids.squeeze(where.axis).movedim(where.axis, 0).squeeze(0)
        order = [a - (a > where.axis) for a in (*rest, *axes)]
        ids = ids.permute(order)
        ids = ids.expand(*ids.shape[: len(rest)], *(source.shape[a] for a in axes))
        shape = [1 if a == where.axis else size for a, size in enumerate(x.shape)]
        mixed = self._slide(
            runtime.filtered,
            ids,
            len(axes),
            # a circular convolution sees every position: one with content is enough for all
            lambda ones: ones.flatten(1).sum(1).view(-1, *[1] * (len(axes) + 1)).expand(-1, 1, *spectrum.lengths),
            (),
            (self.target, [f.node for f in spectrum.filters], shape, spectrum.lengths, tuple(axes)),
            dict(self.signed),
        )
        back = mixed.permute([order.index(i) for i in range(len(order))])
        return self.from_ids(back.unsqueeze(where.axis).unsqueeze(where.axis), where)

    def _fits(self, spectrum: Spectrum, x: Value, axes: Sequence[int]) -> bool:
        """Whether this operator inverts the transform, and filters are the same for every sample."""
        where = spectrum.source.batch_axis
        filters = all(len(f.shape) < len(x.shape) - where.axis or f.shape[where.axis - len(x.shape)] == 1
                      for f in spectrum.filters)  # fmt: skip
        plain = where == BatchAxis(where.axis)
        lengths = tuple(self.shape[a] for a in axes)
        return filters and plain and tuple(axes) == spectrum.axes and lengths == spectrum.lengths
