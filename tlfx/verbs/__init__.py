"""The verbs that rules speak: what an operator can do to provenance, one idea a file."""

from tlfx.verbs.attend import Attention
from tlfx.verbs.indexed import Indexed
from tlfx.verbs.pointwise import Pointwise

__all__ = ["Op"]


class Op(Attention, Pointwise, Indexed):
    """One call of an operator: its shapes, and every verb a rule can use."""
