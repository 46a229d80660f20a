"""Checkpoints of the original RIDE and RIDE-Swin code, read without running code from them."""
