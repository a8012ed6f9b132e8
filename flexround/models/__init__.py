"""Model adapters: what a family of models tells the quantization loop about itself."""
