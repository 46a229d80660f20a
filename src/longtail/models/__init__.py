"""Networks: a shared trunk, a branch and a head for each expert, and a router. They know no settings and no data."""
