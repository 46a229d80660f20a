"""The machine: device, precision, processes, random seeds, signals."""
