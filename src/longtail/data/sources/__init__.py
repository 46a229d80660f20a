"""The data sets that can be read. Each file registers one kind."""
