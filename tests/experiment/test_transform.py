"""`transform=` from the command line: identity, record, artifact and refusals."""

from __future__ import annotations

import pytest

import artifact
from results.records.store import Store
from tests.conftest import TINY

SHORT = ("num_samples=8", "progress=false", "task.seq_len=16", "protocol.max_windows=8")
LLAMA = ("model=tiny_llama", "quant=rtn", "bits=3", *SHORT)
TRANSFORMS = ("smoothquant", "awq", "hadamard")


def record_of(cli, results_dir, *args):
    outcome = cli(*args)
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    return record


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_artifact_carries_the_transformed_network(cli, results_dir, capsys, name, model):
    args = (f"model={model}", *LLAMA[1:], f"transform={name}", "save=true")
    record = record_of(cli, results_dir, *args)
    assert record.transform["name"] == name
    assert record.transform["change_of_logits"] < 1e-5
    assert record.settings["transform"]["_target_"].lower() == name
    folder = Store(results_dir).artifact(record.run_id)
    status = artifact.main(["eval", str(folder)])
    told = capsys.readouterr()
    assert status == 0, told.err
    assert f"perplexity {record.value}" in told.out


AWQ = ("model=tiny_llama", *SHORT, "transform=awq")


def newest(cli, results_dir, *args):
    outcome = cli(*args)
    assert outcome.status == 0, outcome.err
    return max(Store(results_dir).load(), key=lambda record: record.started)


def test_a_search_serves_every_method_and_changes_nothing(cli, results_dir):
    learned = (*AWQ, "transform.candidates=17", "bits=3", "recon.iters=2", "recon.batch_size=4")
    first = newest(cli, results_dir, *learned, "quant=signround")
    again = newest(cli, results_dir, *learned, "quant=flexround", "save=true")
    assert "blocks_reused" not in first.transform
    assert again.transform == first.transform | {"blocks_reused": 2}
    assert artifact.main(["eval", str(Store(results_dir).artifact(again.run_id))]) == 0
    # Caches of two sizes have nothing in common.
    alone = newest(cli, results_dir, *learned, "quant=flexround", "rerun=true", "cache_gib=4")
    assert alone.metrics == again.metrics
    assert alone.transform == first.transform


def test_a_search_serves_no_other_grid_samples_or_transform(cli, results_dir):
    args = [*AWQ, "quant=rtn", "bits=3", "transform.candidates=16"]
    newest(cli, results_dir, *args)
    changes = (
        "bits=4",
        "symmetric=true",
        "granularity=per_tensor",
        "seed=1",
        "num_samples=7",
        "transform.candidates=15",
        "bits_per_layer={model.layers.1.mlp.up_proj: 4}",
    )
    for change in changes:
        kept = [arg for arg in args if arg.partition("=")[0] != change.partition("=")[0]]
        assert "blocks_reused" not in newest(cli, results_dir, *kept, change).transform, change


def test_without_a_transform_a_run_is_called_as_it_always_was(cli, results_dir):
    record = record_of(cli, results_dir, *LLAMA)
    assert "transform" not in record.settings
    assert record.transform == {}
    assert cli(*LLAMA, "transform=none").status == 0
    assert [own.run_id for own in Store(results_dir).load()] == [record.run_id]


BAD = {
    "vision": ((*TINY, "quant=rtn", "transform=smoothquant"), "convolutions"),
    "clip": (
        (*LLAMA, "transform=awq", "transform.clip=false", "transform.clip_candidates=3"),
        "transform.clip_candidates=3 does nothing with the chosen transform.clip",
    ),
    "alpha": ((*LLAMA, "transform=smoothquant", "transform.alpha=2"), "transform.alpha=2"),
    "offload": ((*LLAMA, "transform=smoothquant", "offload=true"), "give offload=false"),
    "encoder": (
        ("model=tiny_bert", "task.max_len=32", "quant=rtn", "num_samples=8", "progress=false",
         "transform=smoothquant"),
        "layer bert.encoder.layer.0.attention.self.query",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_it_is_not_for_is_refused_in_one_line(cli, case):
    args, told = BAD[case]
    outcome = cli(*args)
    assert outcome.status != 0
    assert told in outcome.err
    assert outcome.err.count("error: ") == 1
    assert outcome.err.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("transform", ["hadamard", "smoothquant"])
def test_the_divergence_is_from_the_network_that_the_transform_has_left(
    cli, results_dir, transform
):
    """Norm and head have moved with the blocks' outputs: at 8 bits next to nothing diverges."""
    args = (f"transform={transform}", *LLAMA[:2], "bits=8", *SHORT)
    record = record_of(cli, results_dir, *args)
    assert 0 < record.metrics["kl"] < 1e-3
    assert record.metrics["agreement"] > 97
