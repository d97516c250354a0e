"""A report as a picture: one self-contained SVG file of the graph by block, coloured by class; or its parts, for a page
that arranges them by its width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import sqrt

from tlfx.operations import Operation
from tlfx.report.cards import Card, Skip, cards
from tlfx.report.data import ModelReport
from tlfx.report.rows import Row, change
from tlfx.report.style import COLORS, WORDS, giga

__all__ = ["DEFINITIONS", "STYLE", "draw", "draw_parts", "subtitle"]

WIDTH, GUTTER, PILL, ROW, HEAD, GAP = 482, 34, 190, 24, 40, 34
"""Sizes: width of a card, of its gutter for skip connections and of an operator; heights of row, title and gap."""
TOP, MARGIN, COLUMN_GAP, NARROWEST = 132, 28, 46, 1060
STYLE = """
text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#1f2933}
.title{font-size:22px;font-weight:650}.sub,.note,.flow{fill:#616e7c}.sub{font-size:13px}.note,.quiet{font-size:10.5px}
.card{fill:#fff;stroke:#dfe4ea}.stack{fill:#f4f6f8;stroke:#dfe4ea}.name{font-size:13.5px;font-weight:620}
.kind{font-size:11px;fill:#7b8794}.module{font-size:10.5px;font-weight:620;fill:#52606d}.quiet{fill:#7b8794}
.op{font-size:11.5px;fill:#fff;font-weight:560}.dark{fill:#16202a}.legend{font-size:12px}
.flow{font-size:11px}.line{stroke:#9aa5b1;fill:none;stroke-width:1.5}
.skip{fill:none;stroke:#cc79a7;stroke-width:2}.back{fill:#f7f9fb}
@media(prefers-color-scheme:dark){text{fill:#e4e7eb}.back{fill:#15191e}.card{fill:#1f252c;stroke:#323b45}
.stack{fill:#1a2026;stroke:#323b45}.sub,.note,.flow,.kind,.quiet,.module{fill:#9aa5b1}.op{fill:#fff}.dark{fill:#16202a}}
"""
DEFINITIONS = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 8 4 0 8z" fill="#9aa5b1"/></marker><marker id="join" viewBox="0 0 8 8" refX="7" refY="4" '
    'markerWidth="5" markerHeight="5" orient="auto"><path d="M0 0 8 4 0 8z" fill="#cc79a7"/></marker></defs>'
)
"""The heads of arrows, once for each document."""
DARK = (Operation.POINTWISE, Operation.WEIGHT, Operation.RESIDUAL)
"""Classes with a light colour, on which text is dark."""


@dataclass(frozen=True)
class _Placed:
    card: Card
    x: float
    y: float

    @property
    def height(self) -> float:
        return _height(self.card)


def draw(report: ModelReport) -> str:
    """A report as SVG text.

    >>> from torch import nn
    >>> from tlfx.report import inspect
    >>> draw(inspect(nn.Conv2d(3, 8, 4, 4))).split()[0]
    '<svg'
    """
    placed = _place(cards(report))
    width = max([p.x + WIDTH for p in placed] + [NARROWEST - MARGIN]) + MARGIN
    height = max([p.y + p.height for p in placed] + [TOP]) + MARGIN + 14
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(report.model)}">',
        f"<style>{STYLE}</style>",
        DEFINITIONS,
        f'<rect width="{width:g}" height="{height:g}" class="back"/>',
        *_header(report, width),
        *_flow(placed),
        *(line for p in placed for line in _draw_card(p)),
        "</svg>",
    ]
    return "\n".join(body) + "\n"


def draw_parts(report: ModelReport) -> Iterator[str]:
    """The cards of a report in order, each as SVG text with an arrow to the next; they need :data:`DEFINITIONS`."""
    held = cards(report)
    for card in held:
        placed = _Placed(card, 1.0, 1.0)
        height = placed.height + (GAP if card is not held[-1] else 12)
        below = _Placed(card, 1.0, 1.0 + height)
        arrow = _flow([placed, below]) if card is not held[-1] else ()
        yield (
            f'<svg width="{WIDTH + 10}" height="{height + 2:g}" viewBox="0 0 {WIDTH + 10} {height + 2:g}" role="img" '
            f'aria-label="{escape(card.title)}">{"".join((*arrow, *_draw_card(placed)))}</svg>'
        )


def subtitle(report: ModelReport) -> str:
    """The size of the images and of the model."""
    shape = "×".join(map(str, report.input_shape))
    return f"input {shape} · {giga(report.parameters)} parameters · {giga(report.flops)}FLOP per image"


def _height(card: Card) -> float:
    return HEAD + ROW * len(card.rows) + 12


def _place(held: Sequence[Card]) -> list[_Placed]:
    """Arrange the cards in columns of about equal height."""
    total = sum(_height(c) + GAP for c in held)
    # about 1.3 times as wide as high
    columns = max(2, round(sqrt(1.3 * total / WIDTH)))
    tallest = max([total / columns, *(_height(c) for c in held)])
    placed: list[_Placed] = []
    x, y = float(MARGIN), float(TOP)
    for card in held:
        if y > TOP and y + _height(card) / 2 > TOP + tallest:
            x, y = x + WIDTH + COLUMN_GAP, float(TOP)
        placed.append(_Placed(card, x, y))
        y += _height(card) + GAP
    return placed


def _header(report: ModelReport, width: float) -> Iterator[str]:
    """Name and size of the model, a bar of FLOPs by class, and the legend."""
    yield _text(MARGIN, 42, report.model, "title")
    yield _text(MARGIN, 64, subtitle(report), "sub")
    x, full = float(MARGIN), min(width, 1.2 * NARROWEST) - 2 * MARGIN
    for row in report.summary:
        if row.share:
            size = row.share * full
            title = f"<title>{WORDS[row.operation]}: {row.share:.1%} of FLOPs</title>"
            fill = COLORS[row.operation]
            yield f'<rect x="{x:g}" y="76" width="{size:.2f}" height="6" fill="{fill}">{title}</rect>'
            x += size
    x = float(MARGIN)
    for operation in Operation:
        held = f"{WORDS[operation]} {report.counts[operation.value]}"
        yield f'<rect x="{x:g}" y="95" width="12" height="12" rx="3" fill="{COLORS[operation]}"/>'
        yield _text(x + 18, 105.5, held, "legend", operation.formula)
        x += 18 + 7 * len(held) + 18


def _flow(placed: Sequence[_Placed]) -> Iterator[str]:
    """Arrows from each card to the next, with the token layout between them."""
    for one, other in pairwise(placed):
        x, bottom = one.x + WIDTH / 2, one.y + one.height
        if one.x == other.x:
            path = f"M{x:g} {bottom:g}V{other.y - 1:g}"
        else:
            side, target = other.x - COLUMN_GAP / 2, other.x + WIDTH / 2
            top = other.y - 14
            path = f"M{x:g} {bottom:g}v14H{side:g}V{top:g}H{target:g}V{other.y - 1:g}"
        yield f'<path class="line" d="{path}" marker-end="url(#tip)"/>'
        yield _text(x + 10, bottom + (21 if one.x == other.x else 27), one.card.tokens, "flow")


def _draw_card(placed: _Placed) -> Iterator[str]:
    card, x, y = placed.card, placed.x, placed.y
    size = f'width="{WIDTH}" height="{placed.height:g}" rx="10"'
    for shift in (8, 4) if card.times > 1 else ():
        yield f'<rect class="stack" x="{x + shift:g}" y="{y + shift:g}" {size}/>'
    yield f'<rect class="card" x="{x:g}" y="{y:g}" {size}/>'
    kind = f'<tspan dx="8" class="kind">{escape(_cut(card.kind, 24))}</tspan>'
    yield f'<text x="{x + 14:g}" y="{y + 25:g}" class="name">{escape(_cut(card.title, 36))}{kind}</text>'
    for place, row in enumerate(card.rows):
        yield from _draw_row(row, x, y + HEAD + ROW * place)
    for skip in card.skips:
        yield _draw_skip(skip, x, y)


def _draw_row(row: Row, x: float, y: float) -> Iterator[str]:
    left, size = x + GUTTER + 10 * row.depth, PILL - 10 * row.depth
    if row.group is not None:
        yield _text(left + 2, y + 17, _cut(f"{row.text}  {row.group.kind}", 50), "module")
        return
    operation = row.node.operation
    hover = f"{row.node.module or 'the model itself'}: {row.node.why}\n{row.node.rule}"
    if operation is Operation.LAYOUT:
        yield _text(left + 8, y + 15.5, _cut(row.text, int(size / 5.8)), "quiet", hover)
    else:
        box = f'x="{left:g}" y="{y + 2:g}" width="{size:g}" height="{ROW - 5}" rx="6"'
        kind = "op dark" if operation in DARK else "op"
        yield f'<rect {box} fill="{COLORS[operation]}"/>'
        yield _text(left + 8, y + 15.5, _cut(row.text, int(size / 7)), kind, hover)
    text = change(row.nodes[0], row.node)
    yield _text(x + GUTTER + PILL + 10, y + 15.5, _cut(text, 40), "note", text)


def _draw_skip(skip: Skip, x: float, y: float) -> str:
    """A line left of the rows, from the start of the skip connection to the residual."""
    top = y + HEAD + ROW * skip.start + ROW - 1.5 if skip.start >= 0 else y + HEAD - 4
    bottom = y + HEAD + ROW * skip.end + ROW / 2 - 0.5
    side, right = x + GUTTER - 9 - 7 * skip.lane, x + GUTTER - 1
    return (
        f'<path class="skip" d="M{right:g} {top:g}H{side + 6:g}Q{side:g} {top:g} {side:g} {top + 6:g}'
        f'V{bottom - 6:g}Q{side:g} {bottom:g} {side + 6:g} {bottom:g}H{right:g}" marker-end="url(#join)"/>'
    )


def _text(x: float, y: float, text: str, kind: str, hover: str = "") -> str:
    title = f"<title>{escape(hover)}</title>" if hover else ""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{title}{escape(text)}</text>'


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(length - 1, 0)].rstrip() + "…"
