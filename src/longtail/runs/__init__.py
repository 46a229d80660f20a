"""The run folder: settings, model, checkpoints, results."""
