"""The VTAB-1K benchmark: its protocols, its cells and its report."""
