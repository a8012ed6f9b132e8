"""Quantized models in the formats of other programs: one file a format, each with `export`."""
