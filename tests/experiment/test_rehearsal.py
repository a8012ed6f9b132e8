"""Rehearsals: what a network can't do is refused before it is trained or fetched."""

from __future__ import annotations

import pytest
import transformers

from experiment.rehearsal import _layers
from tasks.language import pretrained, tiny_models
from tasks.vision.trained import TrainedTask

SMALL = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=1,
)  # fmt: skip


@pytest.fixture
def _nothing_is_made(monkeypatch):
    def made(*_: object, **__: object) -> None:
        raise AssertionError("a network is trained or fetched")

    monkeypatch.setattr(TrainedTask, "_fit", made)
    monkeypatch.setattr(tiny_models, "_train", made)
    monkeypatch.setattr(tiny_models, "_encoder", made)
    monkeypatch.setattr(pretrained, "load", made)


REFUSED = {
    "convolution": (["model=resnet18", "quant=lrq"], "layer conv1: LRQ is for linear layers"),
    "group": (
        ["model=resnet18", "granularity=per_group", "group_size=7"],
        "group_size=7 does not divide the 576 weights",
    ),
    "samples": (["model=resnet18", "task=digits", "num_samples=9999"], "digits has 1433 training"),
    "scattered": (["model=resnet18", "num_samples=99999"], "draws up to 65536 calibration images"),
    "tokens": (
        ["model=resnet18", "activation=dynamic_per_token"], "is for transformers",
    ),
    "tiny": (
        ["model=tiny_gpt2", "granularity=per_group", "group_size=7"],
        "group_size=7 does not divide the 64 weights",
    ),
    "tiny_samples": (["model=tiny_llama", "num_samples=99999"], "lower num_samples"),
    "encoder": (["model=tiny_bert", "quant=lrq"], "rank 1024 saves nothing"),
    "encoder_samples": (["model=tiny_bert", "num_samples=99999"], "lower num_samples"),
    "left": (["model=tiny_opt", "model.leave=[nope]"], "names no weight in a block"),
}  # fmt: skip


@pytest.mark.usefixtures("_nothing_is_made")
@pytest.mark.parametrize(("args", "words"), REFUSED.values(), ids=REFUSED)
def test_a_network_is_not_trained_for_a_run_that_it_can_not_do(cli, tmp_path, args, words):
    outcome = cli(*args, f"cache_dir={tmp_path}/empty")
    assert outcome.status == 1
    assert words in outcome.err.splitlines()[-1]


@pytest.mark.usefixtures("_nothing_is_made")
@pytest.mark.parametrize(
    ("args", "words"),
    [
        # Rows of 32 and 48 weights; keys of 1 head of 8 rows: 8 * 32 / 40 = 6.4 parameters a rank.
        (["granularity=per_group", "group_size=5"], "group_size=5 does not divide the 32 weights"),
        (
            ["granularity=per_group", "group_size=32"],
            "group_size=32 does not divide the 48 weights",
        ),
        (["quant=lrq", "quant.rank=7"], "rank 7 saves nothing on a weight [8, 32]"),
        (["quant=gptq", "granularity=per_group", "group_size=5"], "group_size=5 does not divide"),
    ],
)
def test_a_network_of_the_hub_is_not_fetched_for_what_its_shapes_forbid(
    cli, monkeypatch, tmp_path, args, words
):
    monkeypatch.setattr(pretrained, "config_of", lambda *_, **__: SMALL)
    args = ["model=hf", "model.source=org/small", "task=python_docs", *args]
    outcome = cli(*args, f"cache_dir={tmp_path}/empty")
    assert outcome.status == 1
    assert words in outcome.err.splitlines()[-1]


def test_layers_that_stay_in_full_precision_are_not_looked_at(monkeypatch):
    """The cure for a group that does not divide a layer is to leave that layer."""
    monkeypatch.setattr(pretrained, "config_of", lambda *_, **__: SMALL)
    network = pretrained.hollow(transformers.AutoModelForCausalLM, "org/small")
    names = [layer.name for layer in _layers(network, ["*.down_proj", "mlp.up_proj.weight"])]
    assert len(names) == 2 * (7 - 2)
    assert not [name for name in names if "down_proj" in name or "up_proj" in name]


def test_a_described_network_is_hollow(monkeypatch):
    monkeypatch.setattr(pretrained, "config_of", lambda *_, **__: SMALL)
    network = pretrained.hollow(transformers.AutoModelForCausalLM, "org/small")
    assert network is not None
    layers = [m for m in network.modules() if type(m).__name__ == "Linear"]
    assert len(layers) == 2 * 7 + 1
    assert all(layer.weight.is_meta for layer in layers)


def test_a_network_that_can_not_be_described_is_left_to_its_loading(monkeypatch):
    def absent(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(pretrained, "config_of", absent)
    assert pretrained.hollow(transformers.AutoModelForCausalLM, "org/small") is None


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama"])
def test_a_sound_run_passes_its_rehearsal(cli, tmp_path, model):
    short = ["num_samples=8", "recon.iters=1", "recon.batch_size=4"]
    outcome = cli(f"model={model}", *short, f"cache_dir={tmp_path}/empty")
    assert outcome.status == 0, outcome.err
