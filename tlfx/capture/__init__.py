"""Capture: a model call as a torch.fx graph of ATen operators that reads the model's own parameters."""
