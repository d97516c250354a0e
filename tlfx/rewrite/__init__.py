"""Rewriting: label arithmetic written into a captured graph, and the segments that it runs in."""
