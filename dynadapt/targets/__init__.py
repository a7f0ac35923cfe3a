"""Pure functions between a model's outputs and targets: losses, scores, areas, windows."""
