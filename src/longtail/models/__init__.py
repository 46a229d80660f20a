"""The model: trunk, branches, heads."""
