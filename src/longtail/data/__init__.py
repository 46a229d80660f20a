"""From files to batches: data sources, the long tail, augmentation, loaders."""
