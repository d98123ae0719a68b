"""Preprocessing: one raw value of a modality becomes one tensor of fixed shape."""
