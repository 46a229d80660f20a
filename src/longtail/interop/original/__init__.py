"""Checkpoints of the original RIDE and RIDE-Swin repositories, read without executing anything in them."""
