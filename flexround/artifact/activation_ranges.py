"""Activation ranges of an artifact, and the quantizers made of them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flexround.activations.quantizers import ActivationQuantizer, TensorQuantizer, TokenQuantizer
from flexround.activations.schemes import RangesFrom
from flexround.ranges import Ranges
from flexround.structure import Role, Site


@dataclass(frozen=True)
class StoredSite:
    """One activation quantizer.

    Attributes:
        bits: of its codes.
        scale: the static step, a scalar; None where each token brings its own range.
        zero_point: of the static step, a whole number.
        signed: whether the static codes are around 0.
    """

    bits: int
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    signed: bool = False

    @property
    def static(self) -> bool:
        """Whether it has a range of its own."""
        return self.scale is not None

    @classmethod
    def of(cls, quantizer: ActivationQuantizer) -> StoredSite:
        """Return what makes quantizer, on the CPU."""
        held = {name: value.detach().cpu() for name, value in quantizer.qparams().items()}
        if not held:
            return cls(quantizer.bits)
        return cls(quantizer.bits, held["scale"], held["zero_point"], bool(held["signed"]))

    def header(self) -> dict[str, Any]:
        """Return what is no tensor of it, as JSON values."""
        return {"bits": self.bits, "static": self.static, "signed": self.signed}


@dataclass
class StoredActivation:
    """How a run quantized its activations, as an Activation that makes the same quantizers."""

    sites: Mapping[str, StoredSite]
    kv_bits: int | None
    device: torch.device

    learns: ClassVar[bool] = False
    per_token: ClassVar[bool] = False
    init_samples: ClassVar[int] = 0
    ranges_from: ClassVar[RangesFrom] = "quant"  # they are there

    @classmethod
    def on(
        cls, sites: Mapping[str, StoredSite], places: Sequence[Site], device: torch.device
    ) -> StoredActivation:
        """Return the quantizers of sites for a model that has places.

        Raises:
            ValueError: when the two differ.
        """
        cached = [place.name for place in places if place.role == "kv"]
        kv_bits = sites[cached[0]].bits if cached and cached[0] in sites else None
        names = {p.name for p in places if p.role != "kv" or kv_bits is not None}
        if odd := sorted(names ^ sites.keys()):
            there = "the network" if odd[0] in names else "the artifact"
            raise ValueError(f"only {there} has the activation {odd[0]}; it is another model's")
        return cls(sites, kv_bits, device)

    def quantizer(self, name: str, role: Role, ranges: Ranges) -> ActivationQuantizer:
        """Return the quantizer of a site with its range."""
        site = self.sites[name]
        if site.scale is None or site.zero_point is None:
            return TokenQuantizer(name, site.bits)
        made = TensorQuantizer(name, site.bits, site.signed, ranges)
        zero_point = site.zero_point.to(self.device, site.scale.dtype)
        signed = torch.tensor(site.signed)
        made.load_qparams(
            {"scale": site.scale.to(self.device), "zero_point": zero_point, "signed": signed}
        )
        return made
