"""Where a container's streams go: one module per scheme."""
