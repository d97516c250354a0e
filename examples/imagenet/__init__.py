"""The parts of `train_imagenet.py`, one idea per file; start reading at that script."""
