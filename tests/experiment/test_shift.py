"""`python -m results plot shift`: the integers of a saved run against its own full precision."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
import torch

pytest.importorskip("matplotlib")

import results.__main__ as results
from experiment.__main__ import main
from experiment.artifacts.original import run_called, weights_of
from experiment.artifacts.stated_overrides import composable
from experiment.shift import labels, layers_of, shifts
from results.records.store import Store
from tests.conftest import TINY
from tests.results.records.test_store import record

VISION = (*TINY, "bits=3", "num_samples=64", "progress=false", "save=true")
LLAMA = ("bits=3", "num_samples=8", "progress=false", "save=true")
CASES = {
    "folded batch norms": VISION,
    "half of the groups": (*VISION, "granularity=per_channel", "symmetric=false"),
    "transposed": ("model=tiny_gpt2", *LLAMA),
    "smoothed": ("model=tiny_llama", *LLAMA, "transform=smoothquant"),
    "searched": ("model=tiny_llama", *LLAMA, "transform=awq"),
    "searched for bits of its own": (
        "model=tiny_llama", *LLAMA, "transform=awq", "bits_per_layer={*.q_proj: 2}",
    ),
}  # fmt: skip
SLOW = ("half of the groups", "transposed", "smoothed", "searched for bits of its own")


@pytest.mark.parametrize(
    "case", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_round_to_nearest_has_moved_no_weight(cli, results_dir, cache_dir, case):
    """So that its weights are those which it was given, whatever was folded into them before."""
    outcome = cli(*CASES[case], "quant=rtn")
    assert outcome.status == 0, outcome.err
    (run,) = Store(results_dir).load()
    found = shifts(results_dir, [run.run_id], ["*"], [f"cache_dir={cache_dir}"])
    assert len(found) == len({name for unit in run.blocks for name in unit["layers"]})
    for shift in found.values():
        assert shift.sizes.any()
        assert not shift.moved.any()


def test_samples_that_a_run_holds_out_have_no_part_in_its_transform(cli, results_dir, cache_dir):
    learned = ("quant=flexround", "recon.iters=1", "recon.lr=1e-9", "recon.batch_size=4")
    outcome = cli(*CASES["searched"], *learned, "recon.held_out=4")
    assert outcome.status == 0, outcome.err
    (run,) = Store(results_dir).load()
    found = shifts(results_dir, [run.run_id], ["*.up_proj"], [f"cache_dir={cache_dir}"])
    assert not any(shift.moved.any() for shift in found.values())


def test_methods_stand_beside_each_other(cli, results_dir, cache_dir, tmp_path, capsys):
    for method in ("quant=rtn", "quant=adaround recon.iters=8 recon.lr=0.1"):
        assert cli(*VISION, *method.split()).status == 0
    ids = {run.quant: run.run_id for run in Store(results_dir).load()}
    layers = ("blocks.1.0.conv_exp", "blocks.1.0.conv_pwl")
    found = shifts(
        results_dir, [ids["rtn"][:9], ids["adaround"]], [layers[1], layers[0]],
        [f"cache_dir={cache_dir}"],
    )  # fmt: skip
    assert list(found) == [
        f"{method}, {layer} (3 bit)" for layer in layers for method in ("rtn", "adaround")
    ]
    rtn, adaround = (found[f"{method}, {layers[0]} (3 bit)"] for method in ("rtn", "adaround"))
    assert torch.equal(rtn.sizes, adaround.sizes)
    assert adaround.moved.abs().max() <= 1
    out = tmp_path / "pictures" / "shift.svg"
    words = ["shift", "--results-dir", str(results_dir), "--run", ids["rtn"], "--layer"]
    capsys.readouterr()
    assert main([*words, "*.conv_exp", f"cache_dir={cache_dir}", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_text().startswith("<?xml")
    assert [path.name for path in out.parent.iterdir()] == ["shift.svg"]

    def refused(*args, folder=results_dir):
        assert main(["shift", "--results-dir", str(folder), *map(str, args)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    run = ("--run", ids["rtn"])
    near = refused(*run, "--layer", "blocks.1.0.conv_pwm")
    assert "--layer: blocks.1.0.conv_pwm is none of the" in near
    assert "blocks.1.0.conv_pw" in near.partition("such as")[2]
    assert "give --layer; run" in (listed := refused(*run))
    assert "conv_stem" in listed
    assert f"--run: {ids['rtn']} and {ids['rtn']} are 1 runs" in refused(*run, *run)
    line = refused("--run", "xyz")
    assert "--run xyz: none of the 2 runs" in line
    assert ids["rtn"] in line
    assert "did you mean bits?" in refused(*run, "--layer", "*", "bit=3")
    assert "bits=4 would change nothing" in refused(*run, "--layer", "*", "bits=4")
    file = tmp_path / "records.jsonl"
    file.write_text(Store(results_dir).path(ids["rtn"]).read_text())
    assert f"--results-dir {file}: give the folder" in refused(*run, folder=file)
    # Another network under the same name, as a cache that has been trained anew.
    path = Store(results_dir).path(ids["rtn"])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"network": "0" * 64}))
    assert "another one than its command makes now" in refused(
        *run, "--layer", layers[0], f"cache_dir={cache_dir}"
    )


def test_a_run_without_integers_is_told_with_what_makes_them(cli, results_dir, capsys):
    assert cli(*VISION[:-1], "quant=rtn").status == 0
    (run,) = Store(results_dir).load()
    words = ["shift", "--results-dir", str(results_dir), "--run", run.run_id, "--layer", "*"]
    assert main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"run {run.run_id} has no artifact" in line
    made = cli(*shlex.split(line.partition("python run.py ")[2]))
    assert made.status == 0, made.err
    assert Store(results_dir).artifact(run.run_id).is_dir()
    assert [again.run_id for again in Store(results_dir).load()] == [run.run_id]


def test_results_hands_the_command_on(monkeypatch):
    asked = []
    monkeypatch.setattr(results, "by_experiment", lambda *args: asked.append(args) or 7)
    assert results.main(["plot", "shift", "--run", "a"]) == 7
    assert asked == [("shift", ["--run", "a"])]


def test_rows_have_a_layer_of_each_run():
    mobile, res = ["stem", "a.0", "a.1", "head"], ["stem", "b.0", "b.1"]
    both = {"x": mobile, "y": res}
    assert layers_of(both, ["?.1", "stem"]) == [("stem", "stem"), ("a.1", "b.1")]
    assert layers_of({"x": mobile}, ["head", "a.*"]) == [("a.0",), ("a.1",), ("head",)]
    with pytest.raises(ValueError, match="x has 2, y has 1 of these"):
        layers_of(both, ["stem", "head"])
    with pytest.raises(ValueError, match=r"run x has stem, a\.0, a\.1, head$"):
        layers_of(both, [])
    with pytest.raises(ValueError, match=r"n0.* and 28 more"):
        layers_of({"x": [f"n{place}" for place in range(40)]}, [])


def test_runs_are_told_apart_by_no_more_than_they_differ_in():
    one, two = record("one", 1.0, quant="rtn"), record("two", 1.0, quant="flexround")
    assert labels([one]) == ["rtn"]
    assert labels([one, two]) == ["rtn", "flexround"]
    assert labels([one, replace(one, run_id="b", seed=3)]) == ["rtn, seed 0", "rtn, seed 3"]
    assert labels([one, replace(one, run_id="b")]) == ["rtn, one", "rtn, b"]


def test_a_record_names_its_places_and_an_artifact_none():
    stated = ["model=tiny_llama", "data_dir=/data/a b", "model.source=/nets/mine", "threads=1"]
    assert composable(stated, [], places=True) == stated
    with pytest.raises(ValueError, match="names no place"):
        composable(stated[:2], [])
    for text in ("model._target_=os.system", "+hydra.searchpath=[/x]", "plugins=[mine]"):
        with pytest.raises(ValueError, match="it states"):
            composable([text], [], places=True)


def test_a_run_is_found_by_how_its_id_begins(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="no records in"):
        run_called(store, "a")
    store.write(record("aa1", former_ids=["old"]))
    store.write(record("aa2", status="failed"))
    assert run_called(store, "aa1").run_id == run_called(store, "ol").run_id == "aa1"
    with pytest.raises(ValueError, match=r"2 runs begin so \(aa1, aa2\); give more"):
        run_called(store, "a")
    with pytest.raises(ValueError, match="aa2 failed: it broke"):
        run_called(store, "aa2")


def test_a_record_of_before_overrides_were_kept_is_refused():
    with pytest.raises(ValueError, match="from before records kept their overrides"):
        weights_of(record("old", 1.0), ["a"])
