"""The parts of `train_imagenet.py`, one idea a file; that script is the place to start reading."""
