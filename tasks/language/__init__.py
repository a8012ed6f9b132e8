"""Tasks of the Hugging Face library's models."""
