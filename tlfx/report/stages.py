"""Texts for the tokens of each stage, and for where the label of an output is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tlfx.operations import Operation
from tlfx.report.data import OutputReport
from tlfx.report.fold import Group, fold, tree
from tlfx.report.style import WORDS

if TYPE_CHECKING:
    from tlfx.report.data import ModelReport

__all__ = ["read_from", "stages"]


def stages(report: ModelReport) -> list[tuple[str, str, str]]:
    """Stages of a model that contain blocks or change the tokens: (name, tokens before, tokens after)."""
    content = [n for n in report.nodes if n.operation is not Operation.CONSTANT]
    changes: list[tuple[str, str, str]] = []
    before = ""
    for group in _stage_groups(fold(tree(content, report.modules))):
        held = [n.tokens for n in group.nodes if n.tokens]
        if not held:
            continue
        start, before = before or held[0], held[-1]
        if start != before or any(isinstance(i, Group) and i.is_block for i in [group, *group.items]):
            changes.append((group.title or report.model, start, before))
    return changes


def _stage_groups(root: Group) -> Iterator[Group]:
    """Top-level modules, the blocks of a container that has only blocks, and operators outside modules."""
    for item in root.items:
        if not isinstance(item, Group):
            yield Group(f"({item.short})" if item.operator != "placeholder" else item.name, "", [item])
            continue
        blocks = [i for i in item.items if isinstance(i, Group) and i.is_block]
        if blocks and len(blocks) == len(item.items):
            yield from blocks
        else:
            yield item


def read_from(report: ModelReport, output: OutputReport) -> str:
    """A text that says where the label of an output is read."""
    if not output.labels:
        return "no image content, no label"
    amount = "one label per image" if output.labels == 1 else f"{output.labels} labels per image"
    if output.node is None:
        return f"{amount}, of several operators"
    node = report.by_name[output.node]
    if output.labels == 1:
        part = f"1 of the {output.of} labels" if output.of > 1 else "the label"
    else:
        part = f"{output.labels} labels"
    module = f" in {node.module}" if node.module else ""
    return f"{amount}, {part} of {node.name}{module} ({WORDS[node.operation]})"
