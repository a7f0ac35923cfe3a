"""What leaves for others: a whole model as one program, a model card, the hub."""
