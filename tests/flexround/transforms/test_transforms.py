"""Every transform leaves the full-precision function of every family that it takes as it is."""

from __future__ import annotations

import pytest
import torch

from flexround.calibration.activation_cache import ActivationCache
from flexround.grid import Grid, PerGroup
from flexround.transforms.awq import AWQ
from flexround.transforms.base import Calibration, apply
from flexround.transforms.hadamard import Hadamard
from flexround.transforms.smoothquant import SmoothQuant
from tests.flexround.models.test_families import adapter_of, tokens

TRANSFORMS = {
    "smoothquant": SmoothQuant(0.5, "norms"),
    "smoothquant_all": SmoothQuant(0.5, "all"),
    "awq": AWQ(20, True, 10),
    "hadamard": Hadamard(True),
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "opt", "gpt2", "gpt_neo")
# float32 of a network with two layers: sums in another order, and a division and a product.
TOLERANCE = 2e-6


def made_uneven(adapter):
    """Give every norm and bias of adapter's network values of its own; they are born 1 and 0."""
    draws = torch.Generator().manual_seed(2)
    for name, parameter in adapter.model.named_parameters():
        if parameter.dim() == 1:
            noise = torch.rand(parameter.shape, generator=draws) + 0.5
            parameter.data += noise - (0.5 if name.endswith("weight") else 1.0)
    return adapter


def calibration(batch=None, seed=0):
    return Calibration(
        [tokens() if batch is None else batch], 2, Grid(3, False, PerGroup(16)),
        ActivationCache(), torch.Generator().manual_seed(seed),
    )  # fmt: skip


@torch.no_grad()
def logits(adapter, batch):
    found = adapter.forward(batch)
    real = batch.get("attention_mask")
    return found if real is None else found[real.bool()]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_logits_are_those_of_the_network_before(name, family, padded):
    adapter, batch = made_uneven(adapter_of(family)), tokens(padded=padded)
    before = logits(adapter, batch)
    state = {key: value.clone() for key, value in adapter.model.state_dict().items()}
    found = apply(TRANSFORMS[name], adapter, calibration(batch))
    error = (logits(adapter, batch) - before).norm() / before.norm()
    assert error <= TOLERANCE
    assert found["change_of_logits"] <= TOLERANCE
    # Every block has changed: a transform that does nothing is exact as well.
    changed = {k for k, v in adapter.model.state_dict().items() if not torch.equal(v, state[k])}
    for block in adapter.blocks():
        assert sum(key.startswith(block.name) for key in changed) >= 4


REFUSED = {
    "olmo2": "model.layers.0.self_attn.q_proj",  # norms are behind the layers
    "mixtral": "model.layers.0.mlp.experts.0.gate_up_proj",  # the router reads the norm as well
}


@pytest.mark.parametrize("family", REFUSED)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_network_that_it_is_not_exact_on_is_refused_by_its_layer(name, family):
    adapter = adapter_of(family)
    state = {key: value.clone() for key, value in adapter.model.state_dict().items()}
    with pytest.raises(ValueError, match="layer " + REFUSED[family]):
        apply(TRANSFORMS[name], adapter, calibration())
    assert all(torch.equal(v, state[k]) for k, v in adapter.model.state_dict().items())
