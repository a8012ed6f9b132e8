"""Language models whose layers give, or are called, in another form than most."""

from __future__ import annotations

import pytest
import torch

from flexround.activations.schemes import DynamicPerToken
from flexround.calibration.activation_cache import ActivationCache
from flexround.grid import Grid, PerChannel
from flexround.models.language_adapter import LanguageAdapter
from flexround.ranges import MinMax
from flexround.reconstruction.layerwise import Solve
from flexround.solvers.gptq import GPTQ
from flexround.transforms.awq import AWQ
from flexround.transforms.base import Calibration
from flexround.transforms.finding import Heads
from flexround.transforms.smoothquant import SmoothQuant

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")

CPU = torch.device("cpu")
GRID = Grid(8, False, PerChannel())
EXAMPLE = {"input_ids": torch.arange(8).view(2, 4)}


def made(config, auto=transformers.AutoModel):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return auto.from_config(config).eval()


def test_a_network_whose_layers_give_lists_is_quantized_as_it_runs():
    """GPT-1's do; every block's output is compared with its own as it is replayed."""
    config = transformers.OpenAIGPTConfig(
        vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2
    )
    adapter = LanguageAdapter(made(config, transformers.AutoModelForCausalLM), EXAMPLE, CPU)
    tokens = {"input_ids": torch.arange(48).view(4, 12)}
    plain = adapter.forward(tokens)
    solver = GPTQ(128, 0.01, False, False, False, "ranges")
    given = dict(grid=GRID, ranges=MinMax(), generator=torch.Generator())
    found = Solve(4, True)(adapter, [tokens], quantizer=solver, **given)
    assert found.keys() == adapter.layers().keys()
    change = (adapter.forward(tokens) - plain).norm() / plain.norm()
    assert 0 < change < 0.05, "of 8 bits"


def test_a_network_that_calls_forward_by_hand_is_refused():
    """No hook of torch sees a layer that is run without a call of it."""
    config = transformers.SqueezeBertConfig(
        vocab_size=64, hidden_size=32, embedding_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"SqueezeBertModel runs .* without calling it"):
        LanguageAdapter(made(config), EXAMPLE, CPU)


def test_a_layer_that_gives_queries_too_has_no_cache_of_its_output():
    """Its name, qkv_proj, ends as v_proj does; one range would serve queries, keys and values."""
    config = transformers.Phi3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0,
    )  # fmt: skip
    model = made(config, transformers.AutoModelForCausalLM)
    adapter = LanguageAdapter(model, EXAMPLE, CPU)
    assert not [site for block in adapter.blocks() for site in block.sites if site.role == "kv"]
    given = dict(grid=GRID, ranges=MinMax(), generator=torch.Generator())
    solver = GPTQ(128, 0.01, False, False, False, "ranges")
    tokens = {"input_ids": torch.arange(48).view(4, 12)}
    with pytest.raises(ValueError, match="kv_bits=4"):
        Solve(4, True)(
            adapter, [tokens], quantizer=solver, activation=DynamicPerToken(8, 4), **given
        )


@pytest.mark.parametrize("transform", [AWQ(4, True, 4), SmoothQuant(0.5, "all")])
def test_a_transform_that_convolutions_are_in_the_way_of_names_the_layer(transform):
    """RecurrentGemma's run along the tokens, between the norm and the layers behind it."""
    config = transformers.RecurrentGemmaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, lru_width=32,
        num_attention_heads=2, attention_window_size=8,
    )  # fmt: skip
    gates = [f"{gate}_gate_{of}" for gate in ("input", "recurrent") for of in ("weight", "bias")]
    leave = [f"temporal_block.rg_lru.{name}" for name in gates]
    model = made(config, transformers.AutoModelForCausalLM)
    adapter = LanguageAdapter(model, EXAMPLE, CPU, leave)
    tokens = {"input_ids": torch.arange(48).view(4, 12)}
    given = Calibration([tokens], 2, GRID, ActivationCache(), torch.Generator().manual_seed(0))
    with pytest.raises(
        ValueError, match=r"layer model\.layers\.0\.temporal_block\.linear_out: transform"
    ):
        transform(adapter, given)


class OtherInEachLayer:
    """A configuration that will not state one width for all layers, with an error of its own."""

    def __getattr__(self, name):
        """Refuse."""
        raise RuntimeError(f"{name} differs by layer")


def test_heads_that_differ_by_layer_are_told_by_the_transform():
    with pytest.raises(ValueError, match=r"num_attention_heads differs by layer; give transform"):
        Heads.of(OtherInEachLayer())
