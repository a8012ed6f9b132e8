"""What a network's files lack: tokens without an embedding, weights without a value."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from flexround.models.language import LanguageModel
from tasks.language import tiny_models
from tasks.language.heads import heads_of
from tasks.language.network_files import check_vocabulary
from tests.tasks.language.test_classification import TINY_BERT, glue, sentiment
from tests.tasks.language.test_perplexity import modeling, tiny_model

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")

REFUSED = "tokenizer has 1025 tokens, the model 1024 embeddings"


@pytest.fixture
def llama(cache_dir):
    """Return the tiny LLaMA, of 1024 embeddings, and its tokenizer of as many tokens."""
    return tiny_models.load("tiny:llama", cache_dir, transformers.AutoModelForCausalLM)


def test_a_special_token_past_the_embeddings_is_no_other_models_tokenizer(llama):
    """Gemma 3 1B has <image_soft_token>, id 262144, and 262144 embeddings."""
    network, tokens = llama
    tokens.add_special_tokens({"extra_special_tokens": ["<image_soft_token>"]})
    assert tokens.convert_tokens_to_ids("<image_soft_token>") == 1024
    check_vocabulary(network, tokens, "it")


def test_a_special_token_that_the_tokenizer_puts_in_needs_an_embedding(llama):
    network, tokens = llama
    tokens.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(ValueError, match=REFUSED):
        check_vocabulary(network, tokens, "it")


def test_a_word_past_the_embeddings_is_refused_beside_a_special_token(llama):
    network, tokens = llama
    tokens.add_tokens(["word that is new"])
    with pytest.raises(ValueError, match=REFUSED):
        check_vocabulary(network, tokens, "it")
    tokens.add_special_tokens({"extra_special_tokens": ["<image_soft_token>"]})
    with pytest.raises(ValueError, match="tokenizer has 1026 tokens"):
        check_vocabulary(network, tokens, "it")


def without(folder, name, tokenizer, network):
    """Save network to folder without the weights whose names begin with name; return folder."""
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    kept = {key: value for key, value in weights.items() if not key.startswith(name)}
    assert len(kept) < len(weights)
    save_file(kept, file, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "lm_head"])
def test_a_language_model_is_not_fine_tuned_with_drawn_weights(llama, cache_dir, tmp_path, name):
    source = without(tmp_path / "part", name, llama[1], llama[0])
    told = rf"has no weights for {name}.weight: only the head of a LlamaForCausalLM may be missing"
    with pytest.raises(ValueError, match=told) as error:
        modeling(cache_dir).fresh(tiny_model(), source, 0)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=rf"no weights for {name}.weight: it is no checkpoint of"):
        modeling(cache_dir).load(tiny_model(), source)


def test_weights_of_another_shape_are_not_drawn_anew_below_the_head(cache_dir, tmp_path):
    task = glue("sst2", sentiment(tmp_path), cache_dir)
    network = task.fresh(TINY_BERT, None, 0)
    folder = tmp_path / "wide"
    without(folder, "classifier", task.tokenizer, network)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "bert.encoder.layer.0.output.dense.weight"
    save_file(weights | {name: weights[name][:, :32].contiguous()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"has no weights for {name}: only the head"):
        task.fresh(TINY_BERT, str(folder), 0)


def test_a_classifier_is_made_of_a_network_that_lacks_its_head_alone(cache_dir, tmp_path):
    task = glue("sst2", sentiment(tmp_path), cache_dir)
    network = task.fresh(TINY_BERT, None, 0)  # tiny:bert guesses words: it has no pooler either
    assert sorted(heads_of(network)) == ["bert.pooler", "classifier"]
    headless = without(tmp_path / "headless", "classifier", task.tokenizer, network)
    task.fresh(TINY_BERT, headless, 0)
    part = without(tmp_path / "part", "bert.encoder.layer.1.output", task.tokenizer, network)
    with pytest.raises(ValueError, match=r"no weights for bert\.encoder\.layer\.1\.output\.Layer"):
        task.fresh(TINY_BERT, part, 0)


def test_a_head_is_what_lies_outside_of_the_base_model(llama, cache_dir, tmp_path):
    assert heads_of(llama[0]) == [], "a language model's output is none"
    assert heads_of(llama[0].model) == []
    task = glue("sst2", sentiment(tmp_path), cache_dir)
    causal = LanguageModel("tiny_llama", "tiny:llama", "causal", [])
    assert heads_of(task.fresh(causal, None, 0)) == ["score"]
