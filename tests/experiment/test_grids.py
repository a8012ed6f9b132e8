"""`grid=` from the command line: identity, record, artifact, exports and refusals."""

from __future__ import annotations

import pytest

import artifact
from results.records.store import Store
from tests.conftest import TINY, some_slow

SHORT = ("num_samples=8", "progress=false", "task.seq_len=16", "protocol.max_windows=8")
LLAMA = ("model=tiny_llama", *SHORT)
BLOCKS = ("granularity=per_group", "group_size=32")
GRIDS = {"nf4": ("granularity=per_channel",), "fp4": BLOCKS, "mxfp4": ()}


def record_of(cli, results_dir, *args):
    outcome = cli(*args)
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    return record


@pytest.mark.parametrize("method", ["rtn", "flexround", "gptq"])
@pytest.mark.parametrize("name", some_slow(GRIDS, ["mxfp4"]))
def test_an_artifact_carries_the_codes(cli, results_dir, capsys, name, method):
    learned = ("recon.iters=3", "recon.batch_size=2") if method == "flexround" else ()
    args = (*LLAMA, f"quant={method}", f"grid={name}", *GRIDS[name], *learned, "save=true")
    record = record_of(cli, results_dir, *args)
    assert record.settings["grid"] == {"_target_": name.upper()}
    assert "symmetric" not in record.settings
    folder = str(Store(results_dir).artifact(record.run_id))
    assert artifact.main(["eval", folder]) == 0
    assert f"perplexity {record.value}" in capsys.readouterr().out
    assert artifact.main(["inspect", folder]) == 0
    told = capsys.readouterr().out
    assert f"| {name} " in told
    if name == "mxfp4":  # 4 bits a code, and a byte for each 32
        assert "4.250 bits a weight" in told


def test_integers_are_called_as_they_always_were(cli, results_dir):
    args = (*LLAMA, "quant=rtn")
    record = record_of(cli, results_dir, *args)
    assert "grid" not in record.settings
    assert cli(*args, "grid=integer").status == 0
    assert [own.run_id for own in Store(results_dir).load()] == [record.run_id]


@pytest.mark.parametrize("to", ["compressed-tensors", "gptq"])
def test_an_export_of_integers_refuses_the_table(cli, results_dir, capsys, tmp_path, to):
    pytest.importorskip("compressed_tensors", reason="the extra export is not installed")
    record = record_of(cli, results_dir, *LLAMA, "quant=rtn", "grid=nf4", "save=true")
    folder = str(Store(results_dir).artifact(record.run_id))
    assert artifact.main(["export", folder, "--to", to, "--out", str(tmp_path / "out")]) != 0
    told = capsys.readouterr().err
    assert "is written with integers" in told
    assert "grid=nf4; quantize with grid=integer" in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_onnx_refuses_the_table(cli, results_dir, capsys, tmp_path):
    pytest.importorskip("onnx_ir", reason="the extra export is not installed")
    record = record_of(
        cli, results_dir, *TINY, "quant=rtn", "grid=fp4", "num_samples=64", "progress=false",
        "save=true",
    )  # fmt: skip
    folder = str(Store(results_dir).artifact(record.run_id))
    assert artifact.main(["inspect", folder]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "|" in line][2:]
    kinds = [(row[3].strip(), row[4].strip()) for row in rows]
    assert kinds[0] == kinds[-1] == ("8", "symmetric"), "first and last layer are on integers"
    assert set(kinds[1:-1]) == {("4", "fp4")}
    assert artifact.main(["export", folder, "--to", "onnx", "--out", str(tmp_path / "out")]) != 0
    assert "ONNX is written with integers" in capsys.readouterr().err


RTN = (*LLAMA, "quant=rtn")
BAD = {
    "bits": ((*RTN, "grid=nf4", "bits=3"), "grid=nf4 has codes of 4 bits, not bits=3"),
    "symmetric": ((*RTN, "grid=fp4", "symmetric=false"), "symmetric=false does nothing"),
    "groups": ((*RTN, "grid=mxfp4", "group_size=16"), "granularity=per_group group_size=32"),
    "granularity": ((*RTN, "grid=mxfp4", "granularity=per_channel"), "a scale for each 32"),
    "lp_2d": ((*RTN, "grid=nf4", "ranges=lp_2d"), "nor a table of levels"),
    "unknown": ((*RTN, "grid=nf8"), "available grid: fp4, integer, mxfp4, nf4"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_grid_is_not_for_is_refused_in_one_line(cli, case):
    args, told = BAD[case]
    outcome = cli(*args)
    assert outcome.status != 0
    assert told in outcome.err
    assert outcome.err.strip().splitlines()[-1].startswith("error: ")
