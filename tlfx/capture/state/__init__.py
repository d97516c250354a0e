"""Side effects of a forward: found by two snapshots, restored, and put back by the graph or refused."""
