"""A report as one self-contained HTML file: the picture, the sums, and a collapsed table of all nodes."""

from __future__ import annotations

from html import escape

from tlfx.operations import Operation
from tlfx.report.data import ModelReport, NodeReport
from tlfx.report.picture import DEFINITIONS, draw_parts, subtitle
from tlfx.report.picture import STYLE as PICTURE
from tlfx.report.stages import read_from, stages
from tlfx.report.style import COLORS, WORDS, giga

__all__ = ["page", "snippet"]

STYLE = """
.tlfx{font:14px/1.5 system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;color:#1f2933;background:#f7f9fb}
.tlfx header{padding:20px 28px 12px}.tlfx h1{font-size:22px;font-weight:650;margin:0}
.tlfx p{margin:4px 0 10px;font-size:13px}
.tlfx .bar{display:flex;max-width:1216px;height:6px}.tlfx .key{font-size:12px;margin:10px 0 0}
.tlfx .key span{display:inline-block;margin-right:18px;white-space:nowrap}
.tlfx .picture{columns:492px;column-gap:36px;max-width:1550px;padding:0 28px}
.tlfx svg{display:block;max-width:100%;height:auto;break-inside:avoid}.tlfx .heads{position:absolute}
.tlfx .sums{display:flex;flex-wrap:wrap;gap:32px;padding:8px 28px 20px}.tlfx h2{font-size:15px;margin:12px 0 6px}
.tlfx table{border-collapse:collapse;background:#fff;border-radius:8px}.tlfx td,.tlfx th{padding:4px 12px;
text-align:left;border-bottom:1px solid #eef1f4;color:#1f2933;background:#fff}
.tlfx th{color:#616e7c;font-weight:560;font-size:12px}
.tlfx .number{text-align:right;font-variant-numeric:tabular-nums}.tlfx details{padding:0 28px 28px}
.tlfx summary{cursor:pointer;font-weight:600;padding:8px 0}.tlfx details table{font-size:12px}
.tlfx .sums,.tlfx details{overflow-x:auto}
@media(prefers-color-scheme:dark){.tlfx,.page{color:#e4e7eb;background:#15191e}.tlfx table,.tlfx td,.tlfx th{
color:#e4e7eb;background:#1f252c;border-color:#323b45}.tlfx th{color:#9aa5b1}}
.tlfx .dot{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:8px}
"""


def page(report: ModelReport) -> str:
    """A complete HTML page for a report.

    >>> from torch import nn
    >>> from tlfx.report import inspect
    >>> page(inspect(nn.Conv2d(3, 8, 4, 4))).splitlines()[0]
    '<!doctype html>'
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(report.model)}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>body{{margin:0;background:#f7f9fb}}</style></head><body class='page'>{snippet(report)}</body></html>\n"
    )


def snippet(report: ModelReport) -> str:
    """The content of the page as an HTML fragment, for notebooks."""
    return (
        f'<div class="tlfx"><style>{PICTURE}{STYLE}</style><svg class="heads" width="0" height="0">{DEFINITIONS}</svg>'
        f'{_header(report)}<div class="picture">{"".join(draw_parts(report))}</div>'
        f'<div class="sums">{_classes(report)}{_stages(report)}{_read(report)}</div>{_nodes(report)}</div>'
    )


def _header(report: ModelReport) -> str:
    """Name and size of the model, a bar of FLOPs by class, and the legend."""
    bar = "".join(
        f'<span style="width:{s.share:.3%};background:{COLORS[s.operation]}" '
        f'title="{WORDS[s.operation]}: {s.share:.1%} of FLOPs"></span>'
        for s in report.summary
        if s.share
    )
    key = "".join(
        f'<span title="{escape(o.formula)}">{_dot(o)}{WORDS[o]} {report.counts[o.value]}</span>' for o in Operation
    )
    return (
        f'<header><h1>{escape(report.model)}</h1><p>{escape(subtitle(report))}</p><div class="bar">{bar}</div>'
        f'<div class="key">{key}</div></header>'
    )


def _dot(operation: Operation) -> str:
    return f'<i class="dot" style="background:{COLORS[operation]}"></i>'


def _classes(report: ModelReport) -> str:
    lines = [
        f"<tr><td>{_dot(s.operation)}{WORDS[s.operation]}</td>"
        f'<td class="number">{s.count}</td><td class="number">{f"{s.share:.1%}" if s.flops else ""}</td>'
        f"<td>{escape(s.operation.formula)}</td></tr>"
        for s in report.summary
    ]
    total = f'<tr><td>all</td><td class="number">{len(report.nodes)}</td><td class="number">{giga(report.flops)}</td>'
    head = '<tr><th>class</th><th class="number">operators</th><th class="number">FLOPs</th><th>label rule</th></tr>'
    return f"<div><h2>Operators by class</h2><table>{head}{''.join(lines)}{total}<td></td></tr></table></div>"


def _stages(report: ModelReport) -> str:
    lines = [
        f"<tr><td>{escape(name)}</td><td>{escape(before if before == after else f'{before} → {after}')}</td></tr>"
        for name, before, after in stages(report)
    ]
    return f"<div><h2>Tokens by stage</h2><table>{''.join(lines)}</table></div>"


def _read(report: ModelReport) -> str:
    lines = [
        f"<tr><td>{'×'.join(map(str, o.shape[1:]))}</td><td>{escape(read_from(report, o))}</td></tr>"
        for o in report.outputs
    ]
    return f"<div><h2>Labels read</h2><table>{''.join(lines)}</table></div>"


def _nodes(report: ModelReport) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("node", "operator", "class", "module", "before", "after", "why"))
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(n))}</tr>" for n in report.nodes)
    return f"<details><summary>All {len(report.nodes)} nodes</summary><table><tr>{head}</tr>{lines}</table></details>"


def _cells(node: NodeReport) -> tuple[str, ...]:
    return node.name, node.operator, WORDS[node.operation], node.module, node.before, node.after, node.why
