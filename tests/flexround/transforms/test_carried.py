"""Transformed networks behind every loop and in the files of other programs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flexround.artifact.artifact import take
from flexround.artifact.exports import compressed_tensors
from flexround.grid import Grid, PerGroup
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.reconstruction.layerwise import Solve
from flexround.reconstruction.reconstruction import Reconstruction
from flexround.transforms.base import apply
from tests.flexround.models.test_families import CPU, EXACT, EXAMPLE, SOLVER, network, tokens
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.transforms.test_transforms import TRANSFORMS, calibration, made_uneven

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")

GRID = Grid(4, False, PerGroup(16))


def tied(family):
    return made_uneven(LanguageAdapter(network(family, tie_word_embeddings=True), EXAMPLE, CPU))


def quantized(adapter, method, batch):
    options = dict(
        grid=GRID, ranges=MinMax(), generator=torch.Generator().manual_seed(0), quantizer=SOLVER
    )
    if method == "gptq":
        return Solve(2, True)(adapter, [batch], **options)
    loop = Reconstruction(**EXACT | {"iters": 0 if method == "rtn" else 3})
    return loop(adapter, [batch], **options | {"quantizer": METHODS[method]})


@pytest.mark.parametrize("method", ["gptq", *METHODS])
def test_every_method_quantizes_a_rotated_and_a_scaled_network(method):
    batch = tokens()
    full = tied("llama").forward(batch)
    for name in ("hadamard", "awq"):
        adapter = tied("llama")
        apply(TRANSFORMS[name], adapter, replace(calibration(batch), grid=GRID))
        quantized(adapter, method, batch)
        error = (adapter.forward(batch) - full).norm() / full.norm()
        assert 1e-4 < error < 0.5, name  # as far as 4 bits move it, and no further


@pytest.mark.parametrize("family", ["llama", "opt", "qwen2"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transformers_reads_the_export_as_the_adapters_own(name, family, tmp_path):
    pytest.importorskip("compressed_tensors", reason="the extra export is not installed")
    adapter, batch = tied(family), tokens()
    apply(TRANSFORMS[name], adapter, replace(calibration(batch), grid=GRID))
    artifact = take(adapter, quantized(adapter, "rtn", batch), {})
    folder = tmp_path / "artifact"
    folder.mkdir()
    adapter.model.config.save_pretrained(folder)
    compressed_tensors.export(artifact, adapter, folder, tmp_path / "out")
    own, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    with torch.no_grad():
        found = own.eval()(**batch).logits
    torch.testing.assert_close(found, adapter.forward(batch), rtol=1e-3, atol=1e-4)
