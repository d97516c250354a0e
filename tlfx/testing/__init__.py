"""Tools for authors of rules: labels at every element of a value, and a check of rules against their operators."""

from tlfx.testing.check import check_rule
from tlfx.testing.content import Content
from tlfx.testing.label_probe import LabelProbe

__all__ = ["Content", "LabelProbe", "check_rule"]
