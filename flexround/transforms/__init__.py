"""Exact changes of the full-precision network that make it easier to quantize."""
