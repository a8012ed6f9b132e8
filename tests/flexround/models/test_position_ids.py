"""Logits of a text are its own, on whichever side its batch is padded."""

from __future__ import annotations

import pytest
import torch

from flexround.models.language_adapter import LanguageAdapter
from flexround.models.position_ids import takes_position_ids, with_position_ids
from tasks.language.tiny_families import SIZE, WIDTH, config_of

hf = pytest.importorskip("transformers", reason="the extra language is not installed")

CAUSAL = ("gpt2", "gpt_neo", "llama", "opt")
PAD = 2
TEXTS = [[5, 6, 7], list(range(10, 40)), [9], [50, 51, 52, 53, 54, 55, 56]]


def network(auto, family):
    """Return an untrained network whose positions matter."""
    if family == "roberta":
        config = hf.RobertaConfig(**SIZE, **WIDTH, intermediate_size=128)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, PAD
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    else:
        config = config_of(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(hf, auto).from_config(config).eval()
        for name, parameter in made.named_parameters():
            if "wpe" in name or "position" in name:
                torch.nn.init.normal_(parameter)
    return made


def padded(side):
    longest = max(map(len, TEXTS))
    rows, masks = [], []
    for text in TEXTS:
        pad = longest - len(text)
        parts = ([PAD] * pad, text) if side == "left" else (text, [PAD] * pad)
        rows.append(parts[0] + parts[1])
        masks.append([0] * pad + [1] * len(text) if side == "left" else [1] * len(text) + [0] * pad)
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def adapter(made):
    return LanguageAdapter(made, {"input_ids": torch.arange(8).view(2, 4)}, torch.device("cpu"))


def alone(text):
    ids = torch.tensor([text])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_classifiers_answer_is_the_texts_own(family, side):
    own = adapter(network("AutoModelForSequenceClassification", family))
    together = own.forward(padded(side))
    each = torch.cat([own.forward(alone(text)) for text in TEXTS])
    torch.testing.assert_close(together, each, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("auto", "family"),
    [*(("AutoModelForCausalLM", family) for family in CAUSAL),
     ("AutoModelForQuestionAnswering", "bert"), ("AutoModelForQuestionAnswering", "roberta")],
)  # fmt: skip
def test_every_tokens_logits_are_the_texts_own(auto, family, side):
    own = adapter(network(auto, family))
    batch = padded(side)
    together = own.forward(batch)
    for text, logits, mask in zip(TEXTS, together, batch["attention_mask"].bool(), strict=True):
        expected = own.forward(alone(text))[0]
        torch.testing.assert_close(logits[mask], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_calibration_sees_the_same_positions(cache_dir):
    """The first block's inputs under left padding are those of the text alone."""
    for family in ("gpt2", "llama"):
        own = adapter(network("AutoModelForCausalLM", family))
        batch = padded("left")
        calls = own.record_calls([batch])
        block = own.blocks()[0].module
        everything = torch.arange(len(TEXTS))
        outputs = calls.replay(block, everything, torch.device("cpu"))
        for i, text in enumerate(TEXTS):
            single = own.record_calls([alone(text)])
            expected = single.replay(block, torch.arange(1), torch.device("cpu"))[0]
            found = outputs[i][batch["attention_mask"][i].bool()]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_what_numbers_tokens_itself_is_left_to_it():
    assert not takes_position_ids(network("AutoModelForQuestionAnswering", "roberta"))
    made = network("AutoModelForCausalLM", "gpt2")
    for batch in (padded("right"), {"input_ids": torch.arange(8).view(2, 4)}):
        assert with_position_ids(made, batch) is batch
    given = {**padded("left"), "position_ids": torch.zeros(4, 30, dtype=torch.long)}
    assert with_position_ids(made, given) is given
    found = with_position_ids(made, padded("left"))["position_ids"]
    assert found[0].tolist() == [0] * 27 + [0, 1, 2]
    assert found[1].tolist() == list(range(30))
