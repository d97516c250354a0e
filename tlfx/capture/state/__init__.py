"""What a forward changes beside its output: found by two snapshots, restored, and put back by the graph or refused."""
