"""The calibration set: recorded calls of a block, and where activations are held."""
