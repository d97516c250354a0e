"""Layers that mix tokens and channels together and keep both, as those of permutators do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tlfx import runtime
from tlfx.graph.nodes import shapes
from tlfx.operations import Operation
from tlfx.propagate.labels import NodeFunction
from tlfx.propagate.maps import NONE, compact
from tlfx.propagate.values import Value
from tlfx.propagate.verbs.mixing import Mixing
from tlfx.propagate.verbs.subscripts import ContractionAxes, Subscripts, arrange

__all__ = ["KeptTokens"]

_SPLITS = (torch.ops.aten.view, torch.ops.aten.reshape, torch.ops.aten._unsafe_view, torch.ops.aten.unflatten)


class KeptTokens(Mixing):
    """The step of contractions with a parameter over tokens and their channels at once."""

    def _mix_and_keep_tokens(
        self, w: Value, of_w: Subscripts, axes: ContractionAxes, out: Subscripts, massed: bool = False
    ) -> Value | None:
        """Spatial mixing, Y ← Norm(Σ|W|)·Y, the weights summed over channels, if the output has the same tokens and
        channels as the input, on axes of their own or on one that is split into them right after. None for any other
        layer, such as one that merges tokens. Labels may have a mass (``massed``)."""
        if bool((axes.content.ids == NONE).any()):
            return None
        split = self._split(w, of_w, axes, out)
        w, of_w, inner = split or (w, of_w, axes)
        queries = self._queries_of_tokens(w, of_w, inner)
        if not queries:
            return None
        self.record(Operation.SPATIAL_MIX)
        kept = [c for c in inner.kept if c in queries or c not in inner.queries]
        ids = self._mixed(runtime.mix, w, of_w, inner, kept, {**self.signed, **({"mass": True} if massed else {})})
        ids = arrange(ids, kept, inner.out)
        if split is not None:
            at = inner.out.index(inner.queries[0])
            parts = [self._sizes(w, of_w, inner)[c] for c in inner.out[at : at + 2]]
            ids = ids.expand([*ids.shape[:at], *parts, *ids.shape[at + 2 :]]).flatten(at, at + 1)
        return self.from_ids(ids, axes.content.where_in(out))

    def _queries_of_tokens(self, w: Value, of_w: Subscripts, axes: ContractionAxes) -> list[str]:
        """The axes of the output for those of tokens, if it has one for each contracted axis, in the order of the
        weight; none if it has not, or if tokens or channels are not contracted."""
        sizes = self._sizes(w, of_w, axes)
        gone, new = ([c for c in axes.weight if c in part] for part in (axes.contracted, axes.queries))
        # a proper subset: channels are contracted as well
        if [sizes[c] for c in gone] != [sizes[c] for c in new] or not set(axes.tokens) < set(gone):
            return []
        return [q for q, c in zip(new, gone, strict=True) if c in axes.tokens]

    def _split(
        self, w: Value, of_w: Subscripts, axes: ContractionAxes, out: Subscripts
    ) -> tuple[Value, Subscripts, ContractionAxes] | None:
        """A layer (out, in) along an axis of tokens and their channels with both apart, if what reads it splits its
        output so."""
        if len(axes.tokens) != 1 or len(axes.queries) != 1 or w.read_as is not None:
            return None
        (old,), (new,) = axes.tokens, axes.queries
        sizes = self._sizes(w, of_w, axes)
        layout = _layout(axes.content.ids.movedim(axes.content.subscripts.index(old), 0))
        if sizes[old] != sizes[new] or layout is None or not self._is_split(out.index(new), layout):
            return None
        # such as "out" → ("out.token", "out.channel")
        names = {c: tuple(f"{c}.{part}" for part in layout) for c in (old, new)}
        lengths = tuple(layout.values())
        of_parts = _renamed(of_w, names)
        shape = tuple(n for c, n in zip(of_w, w.shape, strict=True) for n in (lengths if c in names else (n,)))
        parts = replace(w, shape=shape, read_as=NodeFunction(torch.reshape, w.node, {"shape": shape}))
        at = axes.content.subscripts.index(old)
        first = axes.content.ids.unflatten(at, lengths).narrow(at + [*layout].index("channel"), 0, 1)
        content = replace(axes.content, ids=first, subscripts=_renamed(axes.content.subscripts, names))
        return parts, of_parts, ContractionAxes(content, content.split(of_parts), _renamed(axes.out, names))

    def _is_split(self, axis: int, layout: dict[str, int]) -> bool:
        """Whether all that reads this node splits an axis of it into tokens and channels."""
        (shape,) = shapes(self.node)
        tokens = torch.arange(layout["token"]).view([-1 if part == "token" else 1 for part in layout])
        tokens = tokens.expand(tuple(layout.values())).flatten()
        tokens = tokens.view([-1 if a == axis else 1 for a in range(len(shape))]).expand(shape)

        def splits(user: torch.fx.Node) -> bool:
            if getattr(user.target, "overloadpacket", None) not in _SPLITS:
                return False
            return sum(n > 1 for n in compact(tokens.reshape(shapes(user)[0])).shape) == 1

        return bool(self.node.users) and all(map(splits, self.node.users))


def _layout(ids: Tensor) -> dict[str, int] | None:
    """The layout of tokens and their channels along the first axis of ids: lengths, the outer part first. None if
    tokens do not all have as many channels in one layout."""
    # (axis, others)
    rows = ids.flatten(1)
    count = len(rows.unique(dim=0))
    if not 1 < count < len(rows) or len(rows) % count:
        return None
    for outer, inner in (("token", "channel"), ("channel", "token")):
        lengths = {"token": count, "channel": len(rows) // count}
        # (outer, inner, others)
        parts = rows.unflatten(0, (lengths[outer], lengths[inner]))
        if bool((parts == parts.select(int(inner == "channel"), 0).unsqueeze(int(inner == "channel"))).all()):
            return {outer: lengths[outer], inner: lengths[inner]}
    return None


def _renamed(subscripts: Sequence[str], names: dict[str, tuple[str, ...]]) -> Subscripts:
    """Subscripts, some of which are split into several."""
    return tuple(part for c in subscripts for part in names.get(c, (c,)))
