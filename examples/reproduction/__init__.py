"""The parts of `examples/paper.py`: what the paper has, the figures that it prints, and the runs that make them."""
