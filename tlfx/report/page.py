"""A report as one self-contained HTML file: the picture, the sums, and a collapsed table of all nodes."""

from __future__ import annotations

from html import escape

from tlfx.report.data import ModelReport, NodeReport
from tlfx.report.picture import draw
from tlfx.report.stages import read_from, stages
from tlfx.report.style import COLORS, WORDS, giga

__all__ = ["page", "snippet"]

STYLE = """
.tlfx{font:14px/1.5 system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;color:#1f2933;background:#f7f9fb}
.tlfx .picture{overflow-x:auto}.tlfx svg{max-width:none;display:block}
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
        f'<div class="tlfx"><style>{STYLE}</style><div class="picture">{draw(report)}</div>'
        f'<div class="sums">{_classes(report)}{_stages(report)}{_read(report)}</div>{_nodes(report)}</div>'
    )


def _classes(report: ModelReport) -> str:
    lines = [
        f'<tr><td><span class="dot" style="background:{COLORS[s.operation]}"></span>{WORDS[s.operation]}</td>'
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
