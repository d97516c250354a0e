"""Sweeps over many models: each model runs in a separate process and gives one row of a CSV file."""
