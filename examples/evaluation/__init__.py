"""The parts of examples/evaluate.py: folders, classifier, accuracy, corruptions and attacks."""
