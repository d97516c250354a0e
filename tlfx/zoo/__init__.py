"""Sweeps over many models: each in a process of its own, each a row of a CSV file."""
