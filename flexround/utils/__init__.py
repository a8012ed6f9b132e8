"""Small helpers that know nothing of quantization."""
