"""What things cost before anything runs, from shapes alone."""
