"""A model one block at a time is the model, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from benchmarks.memory import make_model, measure
from experiment.full_precision import digest_of_model
from flexround.activations.schemes import StaticPerTensor
from flexround.artifact.header import FILE
from flexround.calibration.activation_cache import ActivationCache
from flexround.calibration.disk_tensors import DiskTensors
from flexround.grid import Grid, PerChannel
from flexround.models.language_adapter import LanguageAdapter
from flexround.models.offloaded_adapter import OffloadedAdapter
from flexround.ranges import MinMax
from flexround.reconstruction.checkpoints import FileCheckpoints
from flexround.reconstruction.layerwise import Solve
from tasks.language import pretrained
from tasks.language.tiny_families import config_of
from tasks.language.tiny_models import tokenizer
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import SETTING
from tests.flexround.solvers.test_drift import QRONOS
from tests.flexround.solvers.test_solvers import CYCLIC

CPU = torch.device("cpu")
AUTO = transformers.AutoModelForCausalLM
EXAMPLE = {"input_ids": torch.arange(8).view(2, 4)}
GRID = Grid(3, False, PerChannel())
STATIC = StaticPerTensor(8, False, 8, 8, None, 4, "quant")
FROM_FP = replace(STATIC, ranges_from="fp")
SHORT = replace(SETTING, iters=3, batch_size=4)
CASES = {
    "flexround": (SHORT, METHODS["flexround"], None),
    "layer": (replace(SHORT, unit="layer"), METHODS["rtn"], None),
    "qdrop": (replace(SHORT, inputs="mixed", act_steps="together"), METHODS["flexround"], FROM_FP),
    "brecq": (
        replace(SHORT, act_steps="after", act_iters=3, act_inputs="fp"),
        METHODS["flexround"],
        STATIC,
    ),
    "last_loss": (
        replace(SHORT, act_steps="after", act_iters=3, act_inputs="fp", last_loss="logits"),
        METHODS["flexround"],
        STATIC,
    ),
    "cdquant": (Solve(4, sequential=True), CYCLIC, None),
    "qronos": (Solve(4, sequential=True), QRONOS, None),
}


@pytest.fixture(scope="module")
def tokens():
    return tokenizer(pairs=False)


def save(folder, tokens, family="llama", dtype=torch.float32):
    """Write a random tiny model in several files; return the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AUTO.from_config(config_of(family)).to(dtype)
    network.save_pretrained(folder, max_shard_size="200KB")
    tokens.save_pretrained(folder)
    return folder


def whole(folder):
    network, _ = pretrained.load(AUTO, str(folder))
    return LanguageAdapter(network, EXAMPLE, CPU)


def lean(folder):
    network, _, shards = pretrained.outline(AUTO, str(folder))
    held = ActivationCache(limit_gib=0, spill=DiskTensors(folder / "spill"))
    return OffloadedAdapter(network, EXAMPLE, CPU, shards, held)


def batches(seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [
        {"input_ids": torch.randint(1024, (6, 16), generator=draws)},
        {"input_ids": torch.randint(1024, (2, 16), generator=draws)},
    ]


def logits(adapter):
    with torch.no_grad():
        other = {"input_ids": torch.arange(27).view(3, 9)}  # of another length
        return [*adapter.outputs([*batches(1), other]), adapter.forward(EXAMPLE)]


def on_meta(adapter):
    inside = [block.module.state_dict() for block in adapter.blocks()]
    return all(tensor.is_meta for state in inside for tensor in state.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neo"])
def test_the_model_is_the_same(tmp_path, tokens, family, dtype):
    folder = save(tmp_path, tokens, family, dtype)
    assert (folder / "model.safetensors.index.json").exists()
    one, other = whole(folder), lean(folder)
    assert on_meta(other)
    for mine, theirs in zip(one.blocks(), other.blocks(), strict=True):
        assert [layer.name for layer in mine.layers] == [layer.name for layer in theirs.layers]
        assert [site.name for site in mine.sites] == [site.name for site in theirs.sites]
    for mine, theirs in zip(logits(one), logits(other), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    digests = {digest_of_model(adapter.model, adapter.state()) for adapter in (one, other)}
    assert len(digests) == 1
    assert on_meta(other)


def quantize(adapter, case, checkpoints=None):
    setting, method, activation = CASES[case]
    return setting(
        adapter, batches(), quantizer=method, grid=GRID, ranges=MinMax(), activation=activation,
        generator=torch.Generator().manual_seed(0), checkpoints=checkpoints,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in CASES] + [("flexround", torch.bfloat16)],
)
def test_quantized_it_is_the_same(tmp_path, tokens, case, dtype):
    folder = save(tmp_path, tokens, dtype=dtype)
    one, other = whole(folder), lean(folder)
    codes, found = quantize(one, case), quantize(other, case)
    assert codes.keys() == found.keys()
    assert all(torch.equal(codes[name].codes, found[name].codes) for name in codes)
    assert all(torch.equal(codes[n].dequantize(), found[n].dequantize()) for n in codes)
    assert on_meta(other)
    for mine, theirs in zip(logits(one), logits(other), strict=True):
        assert torch.equal(mine, theirs)
    assert list((folder / "spill").iterdir()) == []


def test_a_second_attempt_goes_on(tmp_path, tokens):
    folder = save(tmp_path, tokens)
    codes = quantize(lean(folder), "flexround", FileCheckpoints(tmp_path / "kept", {}))
    kept = sorted((tmp_path / "kept").glob("*.safetensors"))
    assert len(kept) == 2
    kept[-1].unlink()
    other = lean(folder)
    again = quantize(other, "flexround", FileCheckpoints(tmp_path / "kept", {}))
    assert all(torch.equal(codes[name].codes, again[name].codes) for name in codes)


def test_a_missing_file_is_named(tmp_path, tokens):
    folder = save(tmp_path, tokens)
    (folder / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00004\.safetensors is missing: model\.s"):
        lean(folder)


def test_a_tensor_that_the_index_only_promises_is_named(tmp_path, tokens):
    folder = save(tmp_path, tokens)
    name = "model.layers.1.mlp.up_proj.weight"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = folder / index["weight_map"][name]
    held = load_file(file)
    del held[name]
    save_file(held, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{file.name} has no tensor {name}"):
        lean(folder)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"])
def test_a_tensor_that_is_nowhere_is_named(tmp_path, tokens, name):
    held = {}
    for file in save(tmp_path, tokens).glob("*.safetensors"):
        held |= load_file(file)
        file.unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    del held[name]
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"has no tensor {name} \(1 of .* missing\)"):
        lean(tmp_path)


def test_a_tensor_of_another_shape_is_named(tmp_path, tokens):
    folder = save(tmp_path, tokens)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ValueError, match=r"mlp\.\w+\.weight is \[.*\] there and \[.*\] in"):
        lean(folder)


def test_a_damaged_file_is_named(tmp_path, tokens):
    file = next(save(tmp_path, tokens).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{file.name} can't be read"):
        lean(tmp_path)


def test_a_folder_without_safetensors_is_refused(tmp_path, tokens):
    folder = save(tmp_path, tokens)
    for file in folder.glob("model*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"has neither model\.safetensors nor .*offload=false"):
        lean(folder)


def test_gguf_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(ValueError, match=r"reads safetensors, not GGUF; give offload=false"):
        pretrained.outline(AUTO, str(tmp_path / "model.gguf"))


def test_a_task_that_needs_the_whole_network_is_refused(cli):
    told = cli("model=tiny_llama", "task=python_topics", "offload=true", "checkpoint=tiny:llama")
    assert told.status == 1
    assert "offload=true: task=python_topics needs the whole network in memory" in told.err


def test_a_vision_model_is_refused(cli):
    told = cli("model=resnet18", "offload=true")
    assert told.status == 1
    assert "offload=true is for language models; give offload=false" in told.err


def test_on_the_command_line_the_value_is_the_same(cli, results_dir, tmp_path):
    args = (
        "model=tiny_llama", "quant=flexround", "bits=3", "num_samples=8", "task.seq_len=32",
        "recon.iters=4", "recon.batch_size=4", "protocol.max_windows=6", "protocol.window=64",
    )  # fmt: skip

    def record(*more):
        assert cli(*args, "save=true", *more).status == 0
        (path,) = results_dir.glob("*.json")
        found = json.loads(path.read_text())
        return found, load_file(results_dir / "artifacts" / found["run_id"] / FILE)

    one, artifact = record()
    spill = tmp_path / "spill"
    other, again = record("offload=true", "stream_gib=0", f"spill_dir={spill}", "rerun=true")
    assert list(spill.iterdir()) == []
    for name in ("run_id", "value", "fp_value"):
        assert one[name] == other[name]
    assert [b["error_after"] for b in one["blocks"]] == [b["error_after"] for b in other["blocks"]]
    assert artifact.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in artifact.items())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_model_of_twice_the_limit_is_quantized_and_evaluated_within_it(tmp_path):
    size = make_model(tmp_path)
    whole = measure(tmp_path, "rtn", False, size // 2)
    assert whole["shortage"]
    assert "perplexities" not in whole
    for method in ("rtn", "flexround"):
        found = measure(tmp_path, method, True, size // 2)
        assert found["peak"] < size / 2
        # Random weights predict nothing, in full precision and quantized.
        assert found["perplexities"] == pytest.approx([1024, 1024], rel=0.5)
