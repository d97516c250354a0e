"""Rules: the registry that holds one for each operator, and the plugins that they come from."""

from __future__ import annotations

from tlfx.rules.plugins import load_file, use_rules
from tlfx.rules.registry import REGISTRY, Registry, Rule, operator_name, rule

__all__ = ["REGISTRY", "Registry", "Rule", "load_file", "operator_name", "rule", "use_rules"]
