"""What every package shares: errors, files, text formatting."""
