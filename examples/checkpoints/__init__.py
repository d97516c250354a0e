"""The parts of `convert_checkpoint.py`: tables of names (`*.txt`), and what is done with them; start at that script."""
