"""Every setting once: its type, default and description; and recipes, which are files of settings."""
