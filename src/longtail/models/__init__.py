"""What a model is: a shared trunk, one branch and head for each expert, and a router. Knows tensors only."""
