"""Post-training quantization by learnable rounding: grids, quantizers and block reconstruction.

Every part works on plain tensors and modules, so a notebook needs nothing but torch.
"""
