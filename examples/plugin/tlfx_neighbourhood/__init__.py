"""Neighbourhood attention and exponential smoothing: an operator and a module with rules for tlfx."""

from tlfx_neighbourhood.model import Classifier, classifier
from tlfx_neighbourhood.operator import attention
from tlfx_neighbourhood.smoothing import Smoothing

__all__ = ["Classifier", "Smoothing", "attention", "classifier"]
