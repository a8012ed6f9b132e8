"""Schemes of activation quantization: which quantizer each site of a model gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from flexround.activations.quantizers import (
    ActivationQuantizer,
    TensorQuantizer,
    TokenQuantizer,
)
from flexround.ranges import Ranges
from flexround.structure import Role

RangesFrom = Literal["fp", "quant"]


class Activation(Protocol):
    """How a run quantizes activations.

    Attributes:
        learns: whether there are step sizes to learn.
        per_token: whether activations must be tokens [..., hidden].
        kv_bits: bits of keys and values, or None to leave them.
        init_samples: calibration samples that set a range, 0 where none do.
        ranges_from: quant where they pass the quantized network, fp the full-precision one.
    """

    learns: ClassVar[bool]
    per_token: ClassVar[bool]
    kv_bits: int | None

    @property
    def init_samples(self) -> int:
        """How many calibration samples set a range."""
        ...

    @property
    def ranges_from(self) -> RangesFrom:
        """Which network's activations set it."""
        ...

    def quantizer(self, name: str, role: Role, ranges: Ranges) -> ActivationQuantizer:
        """Return the quantizer of a site."""
        ...


def _check_bits(**bits: int | None) -> None:
    for name, value in bits.items():
        if value is not None and not 2 <= value <= 8:
            raise ValueError(f"{name}={value}: give a whole number from 2 to 8")


@dataclass(frozen=True)
class StaticPerTensor:
    """One range a tensor, set on calibration samples and then learned.

    Attributes:
        bits: of every site but those below.
        symmetric: codes around 0, unsigned for values that are never negative.
        stem_bits: of the first layer's output.
        head_bits: of the last layer's input.
        kv_bits: of keys and values, or None to leave them.
        init_samples: calibration samples that set the ranges, all where there are fewer.
        ranges_from: quant sets them on what the quantized network gives, weights and activations
            (BRECQ), fp on what the full-precision one does (QDrop).
    """

    bits: int
    symmetric: bool
    stem_bits: int
    head_bits: int
    kv_bits: int | None
    init_samples: int
    ranges_from: RangesFrom

    learns: ClassVar[bool] = True
    per_token: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_bits(
            act_bits=self.bits,
            act_stem_bits=self.stem_bits,
            act_head_bits=self.head_bits,
            kv_bits=self.kv_bits,
        )
        if self.init_samples < 1:
            raise ValueError(f"activation.init_samples={self.init_samples}: give at least 1")
        if self.ranges_from not in ("fp", "quant"):
            raise ValueError(f"activation.ranges_from={self.ranges_from}: give one of fp, quant")

    def quantizer(self, name: str, role: Role, ranges: Ranges) -> ActivationQuantizer:
        """Return the quantizer of a site."""
        if role == "kv":
            assert self.kv_bits is not None, "keys and values are left otherwise"
            return TokenQuantizer(name, self.kv_bits)
        bits = {"inner": self.bits, "stem": self.stem_bits, "head": self.head_bits}[role]
        return TensorQuantizer(name, bits, self.symmetric, ranges)


@dataclass(frozen=True)
class DynamicPerToken:
    """A range for each token as it comes: nothing is calibrated and nothing learned.

    Attributes:
        bits: of every site.
        kv_bits: of keys and values, or None to leave them.
    """

    bits: int
    kv_bits: int | None

    learns: ClassVar[bool] = False
    per_token: ClassVar[bool] = True
    init_samples: ClassVar[int] = 0
    ranges_from: ClassVar[RangesFrom] = "quant"  # there are none to set

    def __post_init__(self) -> None:
        _check_bits(act_bits=self.bits, kv_bits=self.kv_bits)

    def quantizer(self, name: str, role: Role, ranges: Ranges) -> ActivationQuantizer:
        """Return the quantizer of a site."""
        return TokenQuantizer(name, self.kv_bits if role == "kv" and self.kv_bits else self.bits)
