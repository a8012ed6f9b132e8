"""`bits_per_layer=` and `allocation=` from the command line: record, artifact, exports."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import artifact
from results.records.selection import fact
from results.records.store import Store
from results.tables.leaderboard import leaderboard
from tests.conftest import TINY

SHORT = ("num_samples=8", "progress=false", "task.seq_len=16", "protocol.max_windows=8")
LLAMA = ("model=tiny_llama", *SHORT)
MAP = "bits_per_layer={model.layers.0.*: 3, *.down_proj: 8}"


def record_of(cli, results_dir, *args):
    outcome = cli(*args)
    assert outcome.status == 0, outcome.err
    return max(Store(results_dir).load(), key=lambda record: record.started)


def expected(name):
    if name.endswith("down_proj"):
        return 8
    return 3 if name.startswith("model.layers.0.") else 4


@pytest.mark.parametrize("method", ["rtn", "flexround", "signround", "gptq"])
def test_every_method_record_and_artifact_has_them(cli, results_dir, capsys, method):
    learned = ("recon.iters=2", "recon.batch_size=2") if "round" in method else ()
    record = record_of(cli, results_dir, *LLAMA, f"quant={method}", MAP, *learned, "save=true")
    assert record.bits_per_layer
    assert all(bits == expected(name) for name, bits in record.bits_per_layer.items())
    assert 4 < record.average_bits < 8
    assert record.settings["bits_per_layer"] == [["model.layers.0.*", 3], ["*.down_proj", 8]]
    reported = {n: b for block in record.blocks for n, b in block["layers"].items()}
    assert reported == record.bits_per_layer
    folder = str(Store(results_dir).artifact(record.run_id))
    assert artifact.main(["eval", folder]) == 0
    assert f"perplexity {record.value}" in capsys.readouterr().out
    assert artifact.main(["inspect", folder]) == 0
    rows = [r.split("|") for r in capsys.readouterr().out.splitlines() if "_proj" in r]
    assert {r[1].strip(): int(r[3]) for r in rows} == record.bits_per_layer


def test_a_vision_models_first_layer_too(cli, results_dir):
    args = (*TINY, "quant=rtn", "num_samples=64", "progress=false")
    record = record_of(cli, results_dir, *args, "bits_per_layer={conv_stem: 4}")
    assert record.bits_per_layer["conv_stem"] == 4
    assert record.bits_per_layer["classifier"] == 8


def test_an_allocation_is_in_the_record_and_repeats_the_run(cli, results_dir):
    args, budget = (*LLAMA, "quant=rtn"), ("allocation=delta_loss", "allocation.average_bits=3.4")
    first = record_of(cli, results_dir, *args, *budget)
    assert first.bits == 3, "the column of a table"
    assert fact(first, "bits") == 3, "and --where bits=3"
    args = (*args, "bits=3")
    assert set(first.bits_per_layer.values()) > {2}
    assert 3 < first.average_bits <= 3.4
    assert set(first.sensitivity) == set(first.bits_per_layer)
    for name, scores in first.sensitivity.items():
        assert set(scores) == {"2", "4", "8"}
        assert scores["2"] > scores["8"] > 0, name
    told = ",".join(f"{name}: {bits}" for name, bits in first.bits_per_layer.items())
    again = record_of(cli, results_dir, *args, f"bits_per_layer={{{told}}}")
    assert again.run_id != first.run_id
    assert again.value == first.value
    assert again.sensitivity == {}
    plain = record_of(cli, results_dir, *args)
    assert plain.bits_per_layer == {}
    assert plain.average_bits == 3
    assert "bits_per_layer" not in plain.settings
    assert "allocation" not in plain.settings
    table = leaderboard([plain, first])
    assert table["average_bits"].tolist() == ["3.0", "3.4"], "what was asked for"
    seeds = [replace(first, seed=s, average_bits=3.4 - s / 100, run_id=str(s)) for s in (1, 2)]
    assert leaderboard([first, *seeds])["n"].tolist() == [3]
    more = replace(first, settings=first.settings | {"allocation": {"average_bits": 4.0}})
    assert leaderboard([first, more])["average_bits"].tolist() == ["3.4", "4.0"]


def test_exports_carry_them_or_refuse(cli, results_dir, capsys, tmp_path):
    pytest.importorskip("compressed_tensors", reason="the extra export is not installed")
    record = record_of(cli, results_dir, *LLAMA, "quant=rtn", MAP, "save=true")
    folder = str(Store(results_dir).artifact(record.run_id))
    assert artifact.main(["export", folder, "--to", "gptq", "--out", str(tmp_path / "g")]) != 0
    told = capsys.readouterr().err
    assert "one grid for all layers, not 3 (3, 4, 8 bits)" in told
    assert len(told.strip().splitlines()) == 1
    out = tmp_path / "c"
    assert artifact.main(["export", folder, "--to", "compressed-tensors", "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    groups = config["config_groups"].values()
    found = {name: g["weights"]["num_bits"] for g in groups for name in g["targets"]}
    assert found == record.bits_per_layer


RTN = (*LLAMA, "quant=rtn")
BAD = {
    "nothing": ((*RTN, "bits_per_layer={*.dwn_proj: 4}"), "give a name such as model.layers."),
    "number": ((*RTN, "bits_per_layer={0: 4, *: 8}"), "give a name such as model.layers."),
    "range": ((*RTN, "bits_per_layer={*.down_proj: 9}"), "*.down_proj has 9; give a whole number"),
    "half": ((*RTN, "bits_per_layer={*.down_proj: 2.5}"), "has 2.5; give a whole number"),
    "text": ((*RTN, "bits_per_layer=4"), "give layers with their bits"),
    "budget": ((*RTN, "allocation=delta_loss", "allocation.average_bits=1.5"), "give 2 to 8"),
    "bits": ((*RTN, "allocation=delta_loss", "bits=3"), "bits=3 does nothing with the chosen all"),
    "both": ((*RTN, "allocation=delta_loss", "bits_per_layer={*: 4}"), "leave one out"),
    "table": ((*RTN, "grid=nf4", "bits_per_layer={*: 3}"), "give grid=integer"),
    "four": ((*RTN, "grid=nf4", "bits_per_layer={*: 4}"), "leave it out, or give grid="),
    "levels": ((*RTN, "grid=nf4", "allocation=delta_loss"), "give grid=integer"),
    "vision": ((*TINY, "quant=rtn", "allocation=delta_loss"), "only causal language models"),
    "offload": ((*RTN, "offload=true", "allocation=delta_loss"), "give offload=false"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_can_not_be_is_refused_in_one_line(cli, case):
    args, told = BAD[case]
    outcome = cli(*args)
    assert outcome.status != 0
    assert told in outcome.err
    assert outcome.err.strip().splitlines()[-1].startswith("error: ")


SECOND = (*LLAMA, "quant=signround_v2", "recon.iters=4", "recon.batch_size=2")
TWO = (*SECOND, "bits=2")
V2_BAD = {
    "zero": (TWO, "give symmetric=true"),
    "solver": ((*LLAMA, "quant=gptq", "ranges=imatrix", "symmetric=true"), "not for solvers"),
    "static": (
        (*TWO, "symmetric=true", "activation=static_per_tensor"), "not for static ranges"
    ),
    "solver_zero": ((*LLAMA, "quant=gptq", "ranges=imatrix"), "not for solvers"),
    "clipping": ((*LLAMA, "quant=lwc", "ranges=imatrix", "symmetric=true"), "not for methods that"),
    "levels": ((*TWO, "grid=nf4"), "symmetric integers"),
    "vision": ((*TINY, "quant=rtn", "ranges=imatrix"), "ranges=imatrix is for language models"),
}  # fmt: skip


@pytest.mark.parametrize("case", V2_BAD)
def test_what_signrounds_second_version_is_not_for(cli, case):
    args, told = V2_BAD[case]
    outcome = cli(*args)
    assert outcome.status != 0
    assert told in outcome.err


def test_signrounds_second_version_with_its_budget(cli, results_dir, capsys):
    budget = ("allocation=delta_loss", "allocation.average_bits=3")
    args = (*SECOND, "symmetric=true", *budget)
    record = record_of(cli, results_dir, *args, "save=true")
    assert record.average_bits <= 3
    assert artifact.main(["eval", str(Store(results_dir).artifact(record.run_id))]) == 0
    assert f"perplexity {record.value}" in capsys.readouterr().out
