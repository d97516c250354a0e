"""Slow twins: token-label alignment written out by hand, straight from the paper.

No twin knows the library. Those of one model family a file offer ``aligned_share(model, images, mask) -> Tensor``: the
share of the first image that reaches the logits, shape (B,), float64, from ``mask``, the share of the first image in
every pixel, (B, 1, H, W). ``eq_01`` to ``eq_13`` are the equations of the paper, loop by loop.
"""
