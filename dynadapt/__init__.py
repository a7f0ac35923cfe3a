"""Input-conditioned adapters for frozen vision foundation models.

Nothing is imported here, so that the version can be read without starting JAX.
"""

__version__ = "0.1.0"
