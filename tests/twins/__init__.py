"""Slow twins: token-label alignment written out by hand for one model family a file, straight from the paper.

No twin knows the library. Each offers ``aligned_share(model, images, mask) -> Tensor``: the share of the first image
that reaches the logits, shape (B,), float64, from ``mask``, the share of the first image in every pixel, (B, 1, H, W).
"""
