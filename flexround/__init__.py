"""Post-training quantization by learnable rounding: grids, quantizers and block reconstruction.

Every part works on plain tensors and modules, so a notebook needs nothing but torch. In one call:

    import flexround

    found = flexround.quantize(model, calibration, method="flexround", bits=4)
    found.network     # a copy of the model with quantized weights
    found.layers      # codes, scales and zero points by layer

`flexround.methods()` has the names of the methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexround.api.presets import methods
    from flexround.api.quantize import Quantized, quantize

__all__ = ["Quantized", "methods", "quantize"]


def __getattr__(name: str) -> Any:
    if name == "methods":
        from flexround.api.presets import methods

        return methods
    if name in __all__:
        from flexround.api import quantize as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
