"""Contractions: linear layers, matrix products and einsum. What a contraction does to the labels follows from what the
contracted axes hold: channels of one token, tokens, or tokens and channels together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from tlfx import runtime
from tlfx.errors import ProvenanceError, RuleError
from tlfx.operations import Operation
from tlfx.propagate.labels import Rows
from tlfx.propagate.values import Role, Value, fill_none, merge_batch
from tlfx.propagate.verbs.movement import with_image
from tlfx.propagate.verbs.pointwise import Pointwise
from tlfx.propagate.verbs.reduction import Reduction
from tlfx.propagate.verbs.subscripts import LetteredRows, Letters, arrange, equation, split_letter

__all__ = ["Contraction"]


class Contraction(Pointwise, Reduction):
    """Verbs of operators that multiply two values and sum over an axis."""

    def contract(self, x: Value, axis: int, weight: Value) -> Value:
        """A linear layer along an axis of ``x``, with ``weight`` (out, in, *ones).

        Channel mixing, Y ← Y, along channels; spatial mixing, Y ← Norm(|W|)·Y, along tokens that each have channels of
        their own; aggregation, Y ← Norm(Σ Yᵢ), along an axis that holds several tokens and their channels.
        """
        letters = [str(i) for i in range(len(x.shape))]
        contracted = letters[axis]
        out = ["out" if c == contracted else c for c in letters]
        ones = [f"one{i}" for i in range(len(weight.shape) - 2)]
        return self.multiply(x, letters, weight, ["out", contracted, *ones], out)

    def einsum(self, formula: str, *operands: Value) -> Value:
        """An einsum, each letter an axis (no ellipsis); of more than two operands, one after another."""
        inputs, out = formula.replace(" ", "").split("->")
        terms = list(zip(operands, inputs.split(","), strict=True))
        while len(terms) > 2:
            terms = self._contract_pair(terms, out)
        if len(terms) == 1:
            return self.sum_to(*terms[0], out)
        return self.multiply(*terms[0], *terms[1], out)

    def _contract_pair(self, terms: list[tuple[Value, str]], out: str) -> list[tuple[Value, str]]:
        """Two of several operands multiplied: the first two that make content, since a weight among the steps of one
        operator is not in the graph."""
        sizes = {c: size for x, letters in terms for c, size in zip(letters, x.shape, strict=True)}
        made: list[list[tuple[Value, str]]] = []
        for i, j in combinations(range(len(terms)), 2):
            rest = [t for n, t in enumerate(terms) if n not in (i, j)]
            kept = {*out, *(c for _, letters in rest for c in letters)}
            of_step = "".join(dict.fromkeys(c for c in terms[i][1] + terms[j][1] if c in kept))
            step = self.step([sizes[c] for c in of_step])
            made.append([(step.multiply(*terms[i], *terms[j], of_step), of_step), *rest])
            if made[-1][0][0].role in (Role.CONTENT, Role.CONTEXT):
                return made[-1]
        return made[0]

    def matmul(self, a: Value, b: Value) -> Value:
        """A matrix product with the broadcasting of ``torch.matmul``."""
        lead = [f"lead{i}" for i in range(max(len(a.shape), len(b.shape)) - 2)]
        rows = ["n"] if len(a.shape) > 1 else []
        columns = ["p"] if len(b.shape) > 1 else []
        of_a = [*lead[len(lead) - max(len(a.shape) - 2, 0) :], *rows, "m"]
        of_b = [*lead[len(lead) - max(len(b.shape) - 2, 0) :], "m", *columns]
        return self.multiply(a, of_a, b, of_b, [*lead, *rows, *columns])

    def multiply(self, a: Value, of_a: Sequence[str], b: Value, of_b: Sequence[str], out: Sequence[str]) -> Value:
        """Contract two values whose axes go by letters, over the letters that ``out`` lacks."""
        of_a, of_b, out = tuple(of_a), tuple(of_b), tuple(out)
        if Role.CONTEXT in (a.role, b.role):
            if a.is_content or b.is_content:
                query, context = ((a, of_a), (b, of_b)) if a.is_content else ((b, of_b), (a, of_a))
                mixed = self._read_context(*query, *context, out)
                if mixed is not None:
                    return mixed
            a, b = self.resolve_all(a, b)
        if a.is_content and b.is_content:
            return self._multiply_contents(a, of_a, b, of_b, out)
        if a.is_content or b.is_content:
            (x, of_x), (w, of_w) = ((a, of_a), (b, of_b)) if a.is_content else ((b, of_b), (a, of_a))
            return self._weighted(w, of_w, x, of_x, out)
        return self._combine_weights(a, of_a, b, of_b, out)

    def _multiply_contents(self, a: Value, of_a: Letters, b: Value, of_b: Letters, out: Letters) -> Value:
        rows_a, rows_b = LetteredRows.of(a, of_a), LetteredRows.of(b, of_b)
        tokens_a, tokens_b = (self.contracted(r, out) for r in (rows_a, rows_b))
        if tokens_a and tokens_b:
            return self._context(a, of_a, b, of_b, out)
        if tokens_a or tokens_b:
            return self._weighted(*((b, of_b, a, of_a) if tokens_a else (a, of_a, b, of_b)), out)
        maps = [merge_batch(r.pick(split_letter(out, r.batch)), self.batch, r.place_in(out)) for r in (rows_a, rows_b)]
        one, other = torch.broadcast_tensors(*maps)
        if torch.equal(one, other):
            self.record(Operation.CHANNEL_MIX)
            return self.content(one)
        return self._token_by_token(of_a, of_b, out, maps) or self.weight(*maps)

    def _token_by_token(self, of_a: Letters, of_b: Letters, out: Letters, maps: list[Tensor]) -> Value | None:
        """The product of two values of the same tokens: of the one that the other is broadcast along, or the average
        of both (rule of products). None where they differ in their tokens, as queries and keys do."""
        one, other = ([c for c, size in zip(out, m.shape, strict=True) if size > 1] for m in maps)
        if one != other:
            return None
        long = [c for c, size in zip(out, self.shape, strict=True) if size > 1]
        factors = [any(c not in letters for c in long) for letters in (of_a, of_b)]
        if factors[0] != factors[1]:
            self.record(Operation.POINTWISE)
            return self.content(maps[factors.index(False)])
        if len(one) < 2:
            return None
        self.record(Operation.POINTWISE)
        a, b = (self.content(m) for m in maps)
        return self._averaged(a, b)

    def contracted(self, rows: LetteredRows, out: Letters) -> list[str]:
        """Contracted letters along which rows vary."""
        if rows.batch not in out:
            raise ProvenanceError("this contraction sums over the batch; labels belong to one sample each")
        return rows.varying(c for c in rows.letters if c not in split_letter(out, rows.batch))

    def _weighted(self, w: Value, of_w: Letters, x: Value, of_x: Letters, out: Letters) -> Value:
        """Content under a weight or a constant."""
        found = LetteredRows.of(x, of_x)
        gone = [i for i, c in enumerate(found.letters) if c not in split_letter(out, found.batch)]
        found = replace(found, rows=fill_none(found.rows, gone))
        tokens = self.contracted(found, out)
        if not tokens:
            self.record(Operation.CHANNEL_MIX)
            return self.from_rows(found.pick(split_letter(out, found.batch)), found.place_in(out))
        if w.is_constant and not self._mixes_tokens(x, of_x, found, tokens, out):
            if self.policy.aggregation == "weighted" and all(c in of_w for c in tokens):
                return self._aggregate(w, of_w, found, tokens, out)
            kept = self.uniform_over(with_image(found.rows), gone)
            return self.from_rows(arrange(kept, found.letters, split_letter(out, found.batch)), found.place_in(out))
        if w.role is Role.WEIGHT and not self.state.layers.is_aligned(self.node):
            return self.in_place(w, of_w, tokens, out)
        value = (x, of_x) if w.role is Role.WEIGHT and self.policy.heads == "norm" else None
        return self._mix(w, of_w, found, tokens, out, value)

    def _mixes_tokens(self, x: Value, of_x: Letters, found: LetteredRows, tokens: list[str], out: Letters) -> bool:
        """Whether a parameter mixes whole tokens: each occurs once on the contracted axis, and has channels beside."""
        lengths = dict(zip(of_x, x.shape, strict=True))
        constant = [c for c in of_x if c != found.batch and c not in found.varying(of_x) and lengths[c] > 1]
        ids = found.pick(tokens).flatten()
        whole = all(c in out for c in constant) and len(ids.unique()) == len(ids)
        return whole and len(constant) > 0

    def _aggregate(self, w: Value, of_w: Letters, found: LetteredRows, tokens: list[str], out: Letters) -> Value:
        """Aggregation by the weights of a layer; elements of the same token are counted together."""
        self.record(Operation.AGGREGATION)
        self._check_weight(w)
        letters_out = split_letter(out, found.batch)
        kept = found.varying(letters_out)
        ids = with_image(found.pick([*kept, *tokens]))
        columns, groups = ids.reshape(ids.shape[: len(kept)].numel(), -1).unique(dim=1, return_inverse=True)
        axes = [of_w.index(c) for c in tokens]
        shape = ids.shape[: len(kept)]
        new = self.label(runtime.weighted, Rows(columns), w.node, groups, axes, shape=shape, kwargs=self.signed)
        return self.from_rows(arrange(new, kept, letters_out), found.place_in(out))

    def _mix(
        self,
        w: Value,
        of_w: Letters,
        found: LetteredRows,
        tokens: list[str],
        out: Letters,
        value: tuple[Value, Letters] | None = None,
    ) -> Value:
        """``value`` is given where heads are weighted by its norms."""
        self.record(Operation.SPATIAL_MIX)
        letters_out = split_letter(out, found.batch)
        rows = found.varying(found.letters)
        kept = [c for c in letters_out if c in rows or (c not in found.letters and c in of_w)]
        stochastic = w.stochastic is not None and [of_w[w.stochastic]] == tokens
        found = replace(found, rows=with_image(found.rows))
        if value is not None:
            ids = self._mixed(runtime.heads_by_norm, w, of_w, found, kept, self.signed, value)
        else:
            ids = self._mixed(runtime.mix, w, of_w, found, kept, {"stochastic": True} if stochastic else self.signed)
        return self.from_rows(arrange(ids, kept, letters_out), found.place_in(out))

    def _mixed(
        self,
        function: Callable[..., Tensor],
        w: Value,
        of_w: Letters,
        found: LetteredRows,
        kept: list[str],
        options: dict[str, Any],
        value: tuple[Value, Letters] | None = None,
    ) -> Tensor:
        """A label whose rows go by the letters ``kept``, by weight and rows, and by the norms of ``value`` if given."""
        self._check_weight(w)
        rows = found.varying(found.letters)
        sizes = dict(zip(split_letter(of_w, found.batch), _split_shape(w, of_w, found), strict=True))
        sizes |= {c: found.rows.shape[found.letters.index(c)] for c in rows}
        queries = [c for c in kept if c not in found.letters]
        of_weight = found.weight_letters(of_w)
        formula = equation(of_weight, rows, kept, queries)
        args: tuple[Any, ...] = (w.node, Rows(found.pick(rows)), formula)
        options = {"split": found.split_of(of_w), **options}
        if value is not None:
            self._check_weight(value[0])
            names = dict(zip((*of_weight, *rows, *kept), formula.replace(",", "").replace("->", ""), strict=True))
            args += (value[0].node, _named(found.weight_letters(value[1]), names))
            options |= {"split_value": found.split_of(value[1])}
        return self.label(
            function,
            *args,
            shape=[sizes[c] for c in kept],
            kwargs=options,
            query_axis=kept.index(queries[0]) if len(queries) == 1 and function is not runtime.context else None,
        )

    def _check_weight(self, w: Value) -> None:
        if w.node is self.node:
            raise RuleError(f"{self.node.name} mixes tokens by a weight of its own making: write it as two operators")

    def in_place(self, w: Value, of_w: Letters, tokens: list[str], out: Letters) -> Value:
        """A mixing that is left out of the alignment: each query keeps the label it has."""
        for content in w.maps:
            if all(content.shape[of_w.index(c)] == 1 for c in tokens):
                return self.content(arrange(content, of_w, out))
        raise ProvenanceError(f"{self.node.name} cannot be left out of the alignment: its queries have no label")

    def _context(self, a: Value, of_a: Letters, b: Value, of_b: Letters, out: Letters) -> Value:
        """Tokens contracted between two values, kᵀv: a value waiting for its query (linear attention)."""
        sides = [(a, of_a, b, of_b), (b, of_b, a, of_a)]
        fixed = [s for s in sides if s[0].stochastic is not None and s[1][s[0].stochastic] not in out]
        self.record(Operation.SPATIAL_MIX)
        maps = [self._context_map(*side, out) for side in (fixed or sides)[: 1 if len(fixed) == 1 else 2]]
        return self.content(*maps, role=Role.CONTEXT)

    def _finalize(self, ids: Tensor) -> None:
        """Register a context, ids (out, heads), with the label that it has as content: the mean over its heads."""
        finalized = self.label(runtime.settle, Rows(ids), shape=(len(ids),), elementwise=True)
        self.state.contexts.finalize(ids, finalized)

    def _context_map(self, w: Value, of_w: Letters, x: Value, of_x: Letters, out: Letters) -> Tensor:
        found = LetteredRows.of(x, of_x)
        found = replace(found, rows=with_image(found.rows))
        letters_w, letters_out = found.weight_letters(of_w), split_letter(out, found.batch)
        rows = found.varying(found.letters)
        heads = [c for c in letters_w if c in found.letters and c in letters_out and c not in rows]
        kept = [c for c in letters_out if (c in letters_w or c in rows) and c not in heads] + heads
        ids = self._mixed(runtime.context, w, of_w, found, kept, self.signed)
        self._finalize(ids.reshape(-1, ids.shape[len(kept) - len(heads) :].numel()))
        return merge_batch(arrange(ids, kept, letters_out), self.batch, found.place_in(out))

    def _read_context(self, q: Value, of_q: Letters, context: Value, of_c: Letters, out: Letters) -> Value | None:
        """Second contraction of a linear attention, q(kᵀv): |q| on the context, summed over heads, normalised."""
        query = LetteredRows.of(q, of_q)
        if self.contracted(query, out):
            return None
        if not self.state.layers.is_aligned(self.node):
            self.record(Operation.SPATIAL_MIX)
            return self.from_rows(query.pick(split_letter(out, query.batch)), query.place_in(out))
        for content in context.maps:
            side = context.with_maps(content, role=Role.CONTENT)
            found = LetteredRows.of(side, of_c)
            tokens = self.contracted(found, out)
            if tokens:
                return self._mix_heads(q, of_q, query, found, out)
        return None

    def _mix_heads(self, q: Value, of_q: Letters, query: LetteredRows, found: LetteredRows, out: Letters) -> Value:
        self.record(Operation.SPATIAL_MIX)
        letters_q, letters_out = split_letter(of_q, found.batch), split_letter(out, found.batch)
        rows = found.varying(found.letters)
        heads = [c for c in rows if c in letters_q and not query.varying([c])]
        kept = [c for c in letters_out if (c in rows or (c not in found.letters and c in letters_q)) and c not in heads]
        ids = self._mixed(runtime.mix, q, of_q, found, kept, {"mass": True, **self.signed})
        return self.from_rows(arrange(ids, kept, letters_out), found.place_in(out))

    def _combine_weights(self, a: Value, of_a: Letters, b: Value, of_b: Letters, out: Letters) -> Value:
        """Products of weights, or of weights and constants, are weights; one side left over is content of that side."""
        pairs = [
            [
                arrange(m, letters, out)
                for m in v.maps
                if all(m.shape[letters.index(c)] == 1 for c in letters if c not in out)
            ]
            for v, letters in ((a, of_a), (b, of_b))
        ]
        maps = [m for side in pairs for m in side]
        if len(maps) == 1:
            self.record(Operation.SPATIAL_MIX)
            return self.content(maps[0])
        return self.weight(*maps[:2])


def _split_shape(w: Value, of_w: Letters, found: LetteredRows) -> list[int]:
    """Shape of a weight for one sample."""
    shape: list[int] = []
    for c, size in zip(of_w, w.shape, strict=True):
        shape.extend((found.where.outer, found.where.inner) if c == found.batch else (size,))
    return shape


def _named(letters: Letters, names: dict[str, str]) -> str:
    """Letters by the names of an equation, and by names that it does not use."""
    free = (x for x in "abcdefghijklmnopqrstuvwxyz" if x not in names.values())
    return "".join(names[c] if c in names else next(free) for c in letters)
