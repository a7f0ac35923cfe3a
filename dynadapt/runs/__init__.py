"""Run folders: what a training leaves, and how it is read, verified and told."""
