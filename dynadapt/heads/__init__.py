"""Heads: from a backbone's features to a task's outputs."""
