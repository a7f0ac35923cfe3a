"""What trained adapters do, in numbers."""
