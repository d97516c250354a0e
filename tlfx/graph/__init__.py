"""Facts about any torch.fx graph: where nodes come from, aliasing, constants, liveness and residual branches."""
