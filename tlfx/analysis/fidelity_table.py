"""The result of a fidelity study: shares by rule and by reference, and a table of their agreement."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields

import torch
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor

from tlfx.analysis.agreement import Agreement, agreement
from tlfx.analysis.reference import REFERENCES

__all__ = ["AREA", "Fidelity", "Row"]

AREA = "area"
"""The rule of plain CutMix: the share of the pixels, independent of the model."""


@dataclass(frozen=True)
class Row:
    """Agreement of the shares of one rule with one reference."""

    reference: str
    rule: str
    agreement: Agreement


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Shares of the first image in mixed pairs, by label rule and by reference; prints as a table with rich.

    Attributes:
        shares: float32 (pairs,) in [0, 1] for each name of a rule: first ``"area"``, then the policies.
        references: float32 (pairs,) in [0, 1] for each name in :data:`tlfx.analysis.reference.REFERENCES`; undefined
            references are NaN.

    >>> study = Fidelity({"area": torch.tensor([0.2, 0.6])}, {"exchange": torch.tensor([0.3, 0.7])})
    >>> print(study.csv())
    reference,rule,same_as,pairs,correlation,partial,rmse,slope,intercept,calibration_error
    exchange,area,,2,1.0,,0.1,1.0,0.1,0.1
    <BLANKLINE>
    """

    shares: Mapping[str, Tensor]
    references: Mapping[str, Tensor]

    def agreement(self, rule: str, reference: str) -> Agreement:
        """Agreement of the shares of one rule with one reference."""
        return agreement(self.shares[rule], self.references[reference], self.shares[AREA])

    @property
    def rows(self) -> list[Row]:
        """Agreement of every rule with every reference, grouped by reference."""
        return [Row(ref, rule, self.agreement(rule, ref)) for ref in self.references for rule in self.shares]

    def same_as(self, rule: str) -> str | None:
        """The first previous rule with bit-identical shares, None if there is none.

        Rules agree if they differ only in operations that the model does not have.
        """
        shares = self.shares[rule]
        before = list(self.shares)[: list(self.shares).index(rule)]
        return next((name for name in before if torch.equal(self.shares[name], shares)), None)

    def csv(self) -> str:
        """CSV text with a header and a line for each of :attr:`rows`; six decimals, undefined values are empty."""
        names = [f.name for f in fields(Agreement)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["reference", "rule", "same_as", *names])
        for row in self.rows:
            figures = asdict(row.agreement).values()
            shown = ["" if math.isnan(x) else x if isinstance(x, int) else round(x, 6) for x in figures]
            writer.writerow([row.reference, row.rule, self.same_as(row.rule), *shown])
        return text.getvalue()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = ("correlation", "partial", "RMSE", "slope", "intercept", "calibration error")
        for reference in self.references:
            title = f"{REFERENCES.get(reference, reference)} · {self.agreement(AREA, reference).pairs} pairs"
            table = Table("rule", title=title, title_justify="left", box=box.SIMPLE_HEAD)
            for column in columns:
                table.add_column(column, justify="right")
            for rule in self.shares:
                same = self.same_as(rule)
                table.add_row(rule, *([f"[dim]as {same}[/]"] if same else _figures(self.agreement(rule, reference))))
            yield table


def _figures(agreement: Agreement) -> Iterator[str]:
    """All values except the number of pairs, as text."""
    for value in list(asdict(agreement).values())[1:]:
        yield "–" if math.isnan(value) else f"{value:.3f}"
