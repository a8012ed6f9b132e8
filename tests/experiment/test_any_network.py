"""model=hf: any network of a known shape by its source; the record says how much is quantized."""

from __future__ import annotations

import json
import shutil

import pytest

from results.records.store import Store

HF = ("model=hf", "task=python_docs", "quant=rtn", "num_samples=8", "protocol.max_windows=4")


def test_a_record_has_its_network_by_its_source_and_the_share_that_is_quantized(cli, results_dir):
    told = cli(*HF, "model.source=tiny:olmoe", "model.leave=[mlp.gate]", "save=true")
    assert told.status == 0, told.err
    (record,) = Store(results_dir).load()
    assert record.model == "tiny:olmoe"
    assert record.left == [f"model.layers.{i}.mlp.gate.weight" for i in (0, 1)]
    # Of a layer's matrices, by hand: four of attention, a router, and four experts of two.
    attention, router, experts = 2 * 64 * 64 + 2 * 32 * 64, 4 * 64, 4 * (256 * 64 + 64 * 128)
    assert record.quantized_share == (attention + experts) / (attention + router + experts)
    card = (results_dir / "artifacts" / record.run_id / "README.md").read_text()
    assert f"{record.quantized_share:.2%} of the weights in the model's blocks" in card
    assert "mlp.gate.weight" in card


def test_a_folder_is_named_by_its_own_name_and_known_by_what_it_holds(
    cli, results_dir, cache_dir, tmp_path
):
    assert cli(*HF, "model.source=tiny:qwen3").status == 0
    (made,) = cache_dir.glob("checkpoints/tiny-qwen3-*/")
    for name in ("one", "two"):
        shutil.copytree(made, tmp_path / name)
    assert cli(*HF, f"model.source={tmp_path / 'one'}").status == 0
    assert cli(*HF, f"model.source={tmp_path / 'two'}").status == 0
    models = sorted(record.model for record in Store(results_dir).load())
    assert models == ["one", "tiny:qwen3"]
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["model_type"] == "qwen3"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "model.source= is not given; give ORG/NAME"),
        (("model.source=./x", "calibration=hub"), "calibration.corpus.path= is not given"),
        (("model.source=tiny:olmoe",), "model.leave=[mlp.gate] leaves it in full precision"),
        (("model.source=tiny:qwen3", "model.leave=[gate]"), "model.leave=gate names no weight"),
        (("model.source=./nowhere",), "no such folder"),
        (("model.source=tiny:bert",), "model and tokenizer do not match"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(cli, given, words):
    told = cli(*HF, *given)
    assert told.status == 1
    assert words in told.err.strip().splitlines()[-1]


def test_an_encoder_takes_the_kind_of_its_task(cli, results_dir):
    told = cli(
        "model=hf", "model.source=tiny:bert", "task=python_topics", "quant=rtn", "num_samples=8"
    )
    assert told.status == 0, told.err
    assert [record.model for record in Store(results_dir).load()] == ["tiny:bert"]
