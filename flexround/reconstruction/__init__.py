"""The loops that quantize a model, block by block or layer by layer."""
