"""Evaluation where test classes are not as common as training classes."""
