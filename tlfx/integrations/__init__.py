"""Subclasses for training frameworks that call the model themselves; they pass the mixed target to it."""
