"""Matrix products and einsums of any number of operands, as contractions of two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from operator import itemgetter

import torch

from tlfx.propagate.values import Role, Value
from tlfx.propagate.verbs.mixing import Term
from tlfx.propagate.verbs.outer import Outer
from tlfx.propagate.verbs.subscripts import Subscripts

__all__ = ["Einsum"]


class Einsum(Outer):
    """Verbs of operators that are one contraction or several."""

    def einsum(self, formula: str, *operands: Value) -> Value:
        """An einsum by the formula that ``torch.einsum`` takes."""
        return self.contract_terms(*_parsed(formula, operands))

    def contract_terms(self, terms: list[Term], out: Subscripts) -> Value:
        """The same by subscripts: operands, each with its subscripts, are contracted one after another."""
        while len(terms) > 2:
            terms = self._contract_pair(terms, out)
        if len(terms) == 1:
            return self.sum_to(*terms[0], out)
        return self.multiply(*terms[0], *terms[1], out)

    def _contract_pair(self, terms: list[Term], out: Subscripts) -> list[Term]:
        """Two of several operands multiplied: the first two whose product is content that the others can weight, since
        a weight among the steps of one operator has no node in the graph."""
        sizes = {c: size for x, subscripts in terms for c, size in zip(subscripts, x.shape, strict=True)}
        largest = max((x for x, _ in terms if x.is_content), key=lambda x: torch.Size(x.shape).numel(), default=None)
        products: list[tuple[tuple[bool | int, ...], list[Term]]] = []
        for i, j in combinations(range(len(terms)), 2):
            rest = [t for n, t in enumerate(terms) if n not in (i, j)]
            pair = [terms[i], terms[j]]
            kept = {*out, *(c for _, subscripts in rest for c in subscripts)}
            of_step = tuple(dict.fromkeys(c for _, subscripts in pair for c in subscripts if c in kept))
            product = self.step([sizes[c] for c in of_step]).multiply(*terms[i], *terms[j], of_step)
            is_weight = not any(x.is_content for x, _ in pair) or product.role not in (Role.CONTENT, Role.CONTEXT)
            keeps_all = all(c in kept for _, subscripts in pair for c in subscripts)
            order = (
                is_weight,
                product.weighs,
                product.factors is None,  # an outer product of two contents first, as a bilinear layer multiplies them
                keeps_all,  # rather one that is summed
                all(x is not largest for x, _ in pair),
                len(of_step),
            )
            products.append((order, [(product, of_step), *rest]))
        return min(products, key=itemgetter(0))[1]

    def matmul(self, a: Value, b: Value) -> Value:
        """A matrix product with the broadcasting of ``torch.matmul``."""
        lead = [f"lead{i}" for i in range(max(len(a.shape), len(b.shape)) - 2)]
        rows = ["n"] if len(a.shape) > 1 else []
        columns = ["p"] if len(b.shape) > 1 else []
        of_a = [*lead[len(lead) - max(len(a.shape) - 2, 0) :], *rows, "m"]
        of_b = [*lead[len(lead) - max(len(b.shape) - 2, 0) :], "m", *columns]
        return self.multiply(a, of_a, b, of_b, [*lead, *rows, *columns])


def _parsed(formula: str, operands: Sequence[Value]) -> tuple[list[Term], Subscripts]:
    """The operands with their subscripts, and those of the output: an ellipsis stands for the last of several axes, and
    a formula without output has the subscripts that occur once, in order."""
    # an ellipsis counts as one letter below
    inputs, arrow, out = formula.replace(" ", "").partition("->")
    written = [tuple(part) for part in inputs.replace("...", ".").split(",")]
    spare = [len(x.shape) - len(part) + 1 if "." in part else 0 for x, part in zip(operands, written, strict=True)]
    axes = tuple(f"axis{i}" for i in range(max(spare)))

    def full(part: Subscripts, count: int) -> Subscripts:
        at = part.index(".") if "." in part else len(part)
        return (*part[:at], *axes[len(axes) - count :], *part[at + 1 :])

    if not arrow:
        named = [c for part in written for c in part if c != "."]
        out = "..." * ("." in inputs) + "".join(sorted(c for c in set(named) if named.count(c) == 1))
    terms = [(x, full(part, count)) for x, part, count in zip(operands, written, spare, strict=True)]
    return terms, full(tuple(out.replace("...", ".")), len(axes) if "..." in out else 0)
