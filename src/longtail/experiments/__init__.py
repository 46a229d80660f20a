"""Experiments: several recipes with several seeds, and one table of their results."""
