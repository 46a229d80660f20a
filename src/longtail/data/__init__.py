"""Long-tailed data: sources, splits, augmentation, loading."""
