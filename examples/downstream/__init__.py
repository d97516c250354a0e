"""The parts of `segment.py` and `detect.py`, one idea per file; start reading at those scripts."""
