"""Quantized models as files of packed integers."""
