"""The command line: what a user types, good and bad."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiment.checks import check_samples
from flexround.models.vision import VisionModel
from results.records.store import Store
from tasks.vision import checkpoints
from tests.conftest import TINY
from tests.experiment.test_configs import composed
from tests.tasks.vision.test_checkpoints import Harmful
from tests.tasks.vision.test_imagenet import root, write_images

__all__ = ["root"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("recon.iters=10", "num_samples=64")


def test_a_run_writes_its_record(cli, results_dir):
    outcome = cli(*TINY, "quant=flexround", "bits=3", *SHORT)
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    assert (record.status, record.quant, record.bits, record.task) == (
        "ok",
        "flexround",
        3,
        "digits",
    )
    assert record.model == "efficientnet_lite0"
    assert record.value == record.metrics["top1"]
    assert record.fp_value > 90
    right = Store(results_dir).outcomes(record)["top1"]
    assert (len(right), 100 * right.mean()) == (364, pytest.approx(record.value))
    assert record.settings["recon"]["iters"] == 10
    assert record.blocks[0]["layers"] == {"conv_stem": 8}
    for block in record.blocks:
        assert block["seconds"] > 0
        assert block["peak_memory_gib"] > 0
        assert block["error_before"] >= 0
    assert "flexround 3 bit seed 0: top1" in outcome.err
    assert "conv_stem: 8 bit" in outcome.err


def test_the_same_command_again_computes_nothing(cli, results_dir):
    args = (*TINY, "quant=rtn", "bits=3", "num_samples=64")
    assert cli(*args).status == 0
    (path,) = results_dir.glob("*.json")
    before = path.stat().st_mtime_ns
    again = cli(*args)
    assert again.status == 0
    assert "already recorded" in again.err
    assert path.stat().st_mtime_ns == before
    kept = Store(results_dir).outcomes_path(path.stem)
    kept.unlink()
    assert cli(*args, "rerun=true").status == 0
    assert path.stat().st_mtime_ns > before
    assert kept.exists()


def test_a_record_keeps_the_command_that_remakes_it(cli, results_dir):
    surroundings = ("progress=false", "rerun=true", "logger=wandb", "logger.mode=disabled")
    args = (*TINY, "quant=rtn", "num_samples=64", *surroundings)
    assert cli("-m", *args, "bits=3,2").status == 0
    records = Store(results_dir).load()
    assert len(records) == 2
    for record in records:
        assert [o.partition("=")[0] for o in record.overrides] == [
            "model", "model.name", "task", "quant", "num_samples", "bits",
        ]  # fmt: skip
        assert f"already recorded as {record.run_id}" in cli(*record.overrides).err


@pytest.mark.parametrize(
    "options",
    [("recon.iters=1", "recon.batch_size=8"),
     ("recon=qdrop", "activation=static_per_tensor", "recon.iters=1", "recon.batch_size=8")],
)  # fmt: skip
def test_the_command_of_a_sweeps_run_leaves_out_what_served_the_others(cli, results_dir, options):
    """Alone it would be refused for them. A preset's first ranges are round-to-nearest's too."""
    args = (*TINY, "num_samples=32", *options)
    assert cli("-m", *args, "quant=rtn,flexround").status == 0
    records = Store(results_dir).load()
    assert len(records) == 2
    for record in records:
        assert f"already recorded as {record.run_id}" in cli(*record.overrides).err
    (nearest,) = (r for r in records if r.quant == "rtn")
    assert "recon.iters=1" not in nearest.overrides


def test_the_same_seed_gives_the_same_record(cli, results_dir):
    args = (*TINY, "quant=flexround", "bits=2", *SHORT, "rerun=true")
    records = []
    for _ in range(2):
        assert cli(*args).status == 0
        records.append(Store(results_dir).load()[0])
    first, second = records
    assert first.value == second.value
    assert [b["error_after"] for b in first.blocks] == [b["error_after"] for b in second.blocks]


def test_a_sweep_ends_with_its_table(cli, results_dir):
    outcome = cli("-m", *TINY, "quant=rtn,flexround", "bits=3,2", "recon.iters=5", "num_samples=64")
    assert outcome.status == 0, outcome.err
    assert len(list(results_dir.glob("*.json"))) == 4
    table = [line for line in outcome.out.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert all(name in outcome.out for name in ("W3", "W2", "FP", "rtn", "flexround"))
    command = [sys.executable, "-m", "results", "--results-dir", str(results_dir)]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout.strip() == outcome.out.strip()


def test_a_failing_run_does_not_take_the_sweep_with_it(cli, results_dir):
    outcome = cli("-m", *TINY, "quant=flexround", "recon.lr=1e30,1e-3", *SHORT)
    assert outcome.status == 1
    assert "1 of 2 runs failed, the first: block" in outcome.err
    table = [line for line in outcome.out.splitlines() if "flexround" in line]
    assert len(table) == 2
    assert sum("failed" in line for line in table) == 1
    assert "recon.lr" in outcome.out
    assert sorted(r.status for r in Store(results_dir).load()) == ["failed", "ok"]


def test_a_loss_that_is_not_finite_fails_by_block(cli, results_dir):
    outcome = cli(*TINY, "quant=flexround", "recon.lr=1e30", *SHORT)
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1].startswith("error: block conv_stem: the loss is")
    (record,) = Store(results_dir).load()
    assert record.status == "failed"
    assert record.error.startswith("block conv_stem: the loss is")
    assert record.value is None


# Refused before anything is imported or computed: (arguments, what the one line says).
EARLY = {
    "model": (
        ["model=resnet19"],
        ["Could not find 'model/resnet19'; did you mean resnet18 or resnet50? available model: "],
    ),
    "quant": (
        ["quant=flexrond"],
        ["Could not find 'quant/flexrond'; did you mean flexround or ", "flexround_fixed_s1"],
    ),
    "task": (["task=digit"], ["Could not find 'task/digit'; did you mean digits", "available"]),
    "nothing_like": (["task=xyz"], ["Could not find 'task/xyz'; available task: c4"]),
    "alias": (["method=rtn"], ["did you mean quant?"]),
    "another_members": (["quant.rank=64"], ["quant.rank", "it is an option of quant=lrq"]),
    "many_members": (["model.source=x"], ["known keys: library, name, weights"]),
    "solvers": (["recon.sequential=true"], ["recon.sequential", "known keys: unit"]),
    "no_sweep": (
        ["quant=rtn,flexround"],
        ["error: quant=rtn,flexround: several values are a sweep, which takes -m beside them"],
    ),
    "smoke": (["scale=smoke"], ["scale=smoke is an experiment's", "give experiment=NAME"]),
    "dashes": (["--bits=4"], ["--bits=4: no such flag; an option has no dashes: bits=4; "]),
    "key": (["recon.iter=3"], ["recon.iter", "did you mean iters"]),
    "top": (["bit=3"], ["bit", "did you mean bits"]),
    "alone": (["iters=3"], ["iters", "did you mean recon.iters?"]),
    "elsewhere": (["task.lr=3"], ["task.lr", "did you mean recon.lr?"]),
    "above": (["quant.bits=3"], ["quant.bits", "did you mean bits?"]),
    "both": (["task.batch_size=3"], ["did you mean eval_batch_size or recon.batch_size?"]),
    "bits_low": (["bits=1"], ["bits=1: give a whole number from 2 to 8"]),
    "bits_high": (["bits=9"], ["bits=9"]),
    "bits_real": (["bits=3.5"], ["bits", "3.5", "Integer"]),
    "bits_word": (["bits=four"], ["bits", "four", "Integer"]),
    "seed": (["seed=-1"], ["seed=-1: give a whole number from 0 to 4294967295"]),
    "samples": (["num_samples=0"], ["num_samples=0"]),
    "group_idle": (
        ["group_size=64"],
        [
            "group_size=64 does nothing with the chosen granularity; leave it out, or give "
            "granularity=per_group"
        ],
    ),
    "act_bits_idle": (
        ["act_bits=4"],
        ["give activation=dynamic_per_token or activation=static_per_tensor"],
    ),
    "recon_idle": (["quant=rtn", "recon.iters=9"], ["recon.iters=9 does nothing", "quant"]),
    "lr_idle": (["quant=adaquant", "recon.lr=1"], ["recon.lr=1 does nothing", "quant"]),
    "preset": (
        ["recon=fast", "quant=gptq"],
        ["GPTQ solves layer by layer", "give recon=solve, or leave recon= out"],
    ),
    "held_out_idle": (["quant=rtn", "recon.held_out=8"], ["recon.held_out=8 does nothing"]),
    "held_out_solver": (
        ["quant=gptq", "recon.held_out=8"],
        ["recon.held_out", "does nothing with a solver"],
    ),
    "last_loss_idle": (["quant=rtn", "recon.last_loss=logits"], ["recon.last_loss=logits does"]),
    "loss_idle": (["quant=rtn", "recon.loss=relative"], ["recon.loss=relative does"]),
    "loss_images": (["recon.loss=relative"], ["recon.loss=relative is of tokens", "give recon."]),
    "last_loss_solver": (["quant=gptaq", "recon.last_loss=logits"], ["recon.last_loss", "solver"]),
    "keep_best_idle": (
        ["recon.held_out=8", "recon.patience=2", "recon.keep_best=true"],
        ["recon.keep_best=true does nothing with the chosen recon.patience"],
    ),
    "images_idle": (
        ["imagenet_dir=x"],
        ["imagenet_dir=x does nothing with the chosen task; leave it out, or give task=imagenet"],
    ),
    "other_method": (["quant=rtn", "quant.learn_s1=true"], ["learn_s1"]),
}


def test_round_to_nearest_goes_along_in_a_presets_sweep(cli):
    outcome = cli(
        "-m", "model=tiny_llama", "quant=rtn,flexround", "recon=fast", "recon.iters=2",
        "recon.batch_size=4", "num_samples=8", "task.seq_len=16",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err


# Refused before a weight is loaded.
BUILD = {
    "appended": (["+quant.rank=4"], ["quant.rank: FlexRound has no such option", "learn_s1"]),
    "type": (["recon.iters=many"], ["recon.iters=many", "valid integer"]),
    "literal": (
        ["recon.schedule=step"],
        ["recon.schedule=step", "'constant', 'cosine' or 'linear'"],
    ),
    "target": (["quant._target_=flexround.nothing.Q"], ["quant._target_=flexround.nothing.Q"]),
    "no_images": (["task=imagenet"], ["needs imagenet_dir=PATH"]),
    "images": (["task=imagenet", "imagenet_dir=/nowhere"], ["imagenet_dir=/nowhere"]),
    "patience_alone": (["recon.patience=2"], ["recon.patience=2", "give recon.held_out=32"]),
    "last_loss_images": (
        ["recon.last_loss=logits"],
        ["recon.last_loss=logits is of the next token", "ResNet", "give recon.last_loss=block"],
    ),
    "last_loss_word": (["recon.last_loss=kl"], ["recon.last_loss=kl", "'logits_mse' or"]),
    "last_loss_layer": (
        ["model=tiny_llama", "recon.unit=layer", "recon.last_loss=logits"],
        ["recon.unit=layer with recon.last_loss=logits", "give recon.unit=block"],
    ),
    "last_loss_adaround": (
        ["model=tiny_llama", "quant=adaround", "recon.last_loss=logits"],
        ["recon.last_loss=logits: what AdaRound adds", "or another quant="],
    ),
    "warmup": (["quant=adaround", "quant.warmup=2"], ["quant.warmup=2", "[0, 1)"]),
    "p": (["ranges.p=-1"], ["ranges.p=-1", "above 0"]),
    "nothing": (["task.preprocessing=null", "task=imagenet", "imagenet_dir=x"], ["preprocessing"]),
    "no_quant": (["quant=null"], ["quant=null: that is no member of quant", "flexround_no_s3_s4"]),
    "device": (["device=cuda:7"], ["device=cuda:7", "give auto, cpu or cuda:N"]),
    "device_word": (["device=gpu"], ["device=gpu", "give auto, cpu or cuda:N"]),
}


def test_a_setting_of_activations_is_round_to_nearests_too(cli, results_dir, capsys):
    """It learns nothing, and its ranges start as the setting has them, alone as in a sweep."""
    static = (*TINY, "bits=3", "act_bits=3", "activation=static_per_tensor", "num_samples=64")
    assert cli(*static, "quant=rtn", "recon=qdrop").status == 0
    (record,) = Store(results_dir).load()
    assert record.settings["activation"]["ranges_from"] == "fp"
    learns = ("recon=qdrop", "recon.iters=2")
    assert cli("-m", *static, "quant=rtn,flexround", *learns).status == 0
    assert sorted(r.quant for r in Store(results_dir).load()) == ["flexround", "rtn"]
    refused = cli(*TINY, "num_samples=64", "quant=rtn", "recon=qdrop")
    assert refused.status == 1
    assert "recon=qdrop does nothing with the chosen quant" in refused.err


@pytest.mark.parametrize(
    ("args", "words"), [*EARLY.values(), *BUILD.values()], ids=[*EARLY, *BUILD]
)
def test_bad_input_is_one_line_and_leaves_nothing(cli, results_dir, args, words):
    outcome = cli(*args)
    assert outcome.status == 1
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    failed = Store(results_dir).load() if results_dir.exists() else []
    assert all(record.status == "failed" for record in failed)


def test_an_idle_option_serves_the_other_members_of_a_sweep(cli, results_dir):
    args = ("-m", *TINY, "quant=rtn,flexround", "recon.iters=3", "num_samples=64")
    assert cli(*args).status == 0
    assert len(Store(results_dir).load()) == 2
    rtn = next(r for r in Store(results_dir).load() if r.quant == "rtn")
    assert "recon" not in rtn.settings
    refused = cli("-m", *TINY, "quant=rtn", "bits=4,3", "recon.iters=3")
    assert refused.status == 1
    assert "does nothing with the chosen quant" in refused.err


@pytest.mark.parametrize(
    ("args", "words"),
    [(["granularity=per_group", "group_size=5"], "group_size=5 does not divide"),
     (["num_samples=5000"], "digits has 1433 training images"),
     (["checkpoint=nowhere.pth"], "no such file"),
     (["model.name=resnet19"], "timm has no such model")],
)  # fmt: skip
def test_what_only_a_begun_run_can_see_leaves_a_failed_record(cli, results_dir, args, words):
    outcome = cli(TINY[0], TINY[2], *(args if "name" in args[0] else (TINY[1], *args)))
    assert outcome.status == 1
    assert words in outcome.err.splitlines()[-1]
    assert outcome.err.splitlines()[-1].startswith("error: ")
    (record,) = Store(results_dir).load()
    assert (record.status, record.value) == ("failed", None)
    assert words in record.error


@pytest.mark.parametrize(
    ("args", "words"),
    [(["num_samples=16"], "num_samples=16 is smaller than recon.batch_size=32; raise num_samples"),
     (["num_samples=40", "recon.held_out=9"], "recon.held_out=9 of num_samples=40 leaves fewer")],
)  # fmt: skip
def test_fewer_samples_than_a_mini_batch_are_one_line_before_the_network(
    cli, results_dir, args, words
):
    model = ("model=tiny_llama", "quant=flexround", "recon.batch_size=32", "offload=true")
    outcome = cli(*model, *args)
    assert (outcome.status, len(outcome.err.splitlines())) == (1, 1), outcome.err
    assert outcome.err.startswith(f"error: {words}")
    assert not Store(results_dir).load(), "nothing has begun"
    check_samples(
        composed(model[0], *model[2:], *args, "quant=rtn")
    )  # which learns nothing, and takes what there is


def test_a_results_folder_that_can_not_be_written_is_said_before_the_work(cli, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = cli(*TINY, f"results_dir={tmp_path}/file/results")
    assert outcome.status == 1
    assert outcome.err.startswith("error: results_dir=")
    assert "units of" not in outcome.err


def tiny_imagenet(root, tmp_path):
    network = VisionModel("timm", "test_efficientnet", None, 8, False, False, []).build(1000)
    checkpoints.save(network, tmp_path / "net.safetensors")
    return [
        *TINY[:2], "task=imagenet", f"imagenet_dir={root}",
        f"checkpoint={tmp_path}/net.safetensors",
        "task.num_workers=0", "quant=rtn", "num_samples=4",
    ]  # fmt: skip


def test_full_precision_that_is_off_stops_the_run(cli, results_dir, root, tmp_path):
    args = tiny_imagenet(root, tmp_path)
    outcome = cli(*args, "expected_fp=77.7")
    assert outcome.status == 1
    assert "full precision reaches" in outcome.err.splitlines()[-1]
    (record,) = Store(results_dir).load()
    assert record.status == "failed"
    assert record.blocks == []


def test_full_precision_that_is_off_is_told_of_a_recorded_run_too(cli, results_dir, tmp_path):
    args = ("model=tiny_llama", "quant=rtn", "num_samples=8", "task.seq_len=16",
            "protocol.max_windows=8")  # fmt: skip
    assert cli(*args).status == 0
    (record,) = Store(results_dir).load()
    assert "already recorded" in cli(*args, f"expected_fp={record.fp_value}").err
    refused = cli(*args, "expected_fp=1")
    fresh = cli(*args, "expected_fp=1", f"results_dir={tmp_path}/fresh")
    assert refused.status == fresh.status == 1
    assert refused.err.splitlines()[-1] == fresh.err.splitlines()[-1]
    assert "expected are 1.000" in refused.err
    assert Store(results_dir).load() == [record]


def test_an_unreadable_image_fails_the_run_by_name(cli, results_dir, root, tmp_path):
    bad = next((root / "val").rglob("*.JPEG"))
    bad.write_bytes(b"no image")
    outcome = cli(*tiny_imagenet(root, tmp_path))
    assert outcome.status == 1
    assert f"image {bad} cannot be read" in outcome.err.splitlines()[-1]
    assert Store(results_dir).load()[0].status == "failed"


def test_foreign_class_folders_are_refused(cli, root, tmp_path):
    write_images(root / "val" / "cats")
    outcome = cli(*tiny_imagenet(root, tmp_path))
    assert outcome.status == 1
    assert "folder cats" in outcome.err


def test_an_empty_imagenet_is_refused(cli, root, tmp_path):
    for image in (root / "val").rglob("*.JPEG"):
        image.unlink()
    outcome = cli(*tiny_imagenet(root, tmp_path))
    assert outcome.status == 1
    assert outcome.err.startswith("error: imagenet_dir=")
    assert "holds no image" in outcome.err


def test_a_head_that_does_not_match_the_class_list_is_refused(cli, root, tmp_path):
    args = tiny_imagenet(root, tmp_path)
    checkpoints.save(
        VisionModel("timm", "test_efficientnet", None, 8, False, False, []).build(7),
        tmp_path / "net.safetensors",
    )
    outcome = cli(*args)
    assert outcome.status == 1
    assert "classifier.weight is [7" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize("damage", ["truncated", "pickle"])
def test_a_checkpoint_that_can_not_be_trusted_is_refused(cli, results_dir, tmp_path, damage):
    path = tmp_path / "net.pth"
    if damage == "pickle":
        torch.save({"weight": Harmful(tmp_path / "ran")}, path)
    else:
        torch.save(
            VisionModel("timm", "test_efficientnet", None, 8, False, False, [])
            .build(10)
            .state_dict(),
            path,
        )
        path.write_bytes(path.read_bytes()[:9000])
    outcome = cli(*TINY, f"checkpoint={path}")
    assert outcome.status == 1
    words = {"truncated": "damaged or truncated", "pickle": "would run code"}[damage]
    assert words in outcome.err.splitlines()[-1]
    assert not (tmp_path / "ran").exists()
    assert Store(results_dir).load()[0].status == "failed"


def test_a_checkpoint_of_another_architecture_is_refused(cli, tmp_path):
    other = VisionModel("timm", "test_resnet", None, 8, False, False, []).build(10)
    checkpoints.save(other, tmp_path / "other.safetensors")
    outcome = cli(*TINY, f"checkpoint={tmp_path}/other.safetensors")
    assert outcome.status == 1
    assert "is not of test_efficientnet" in outcome.err.splitlines()[-1]


def test_a_checkpoint_on_digits_is_used(cli, results_dir, tmp_path):
    network = VisionModel("timm", "test_efficientnet", None, 8, False, False, []).build(10)
    torch.nn.init.zeros_(network.classifier.weight)
    checkpoints.save(network, tmp_path / "net.safetensors")
    outcome = cli(*TINY, f"checkpoint={tmp_path}/net.safetensors")
    assert outcome.status == 1
    assert "chance is 10.00 %" in outcome.err.splitlines()[-1]


def python(code, *args):
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = ("torch", "torchvision", "timm", "transformers", "wandb", "pandas")
LOADED = f"\nprint('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
RUN = """
import runpy, sys
try:
    runpy.run_path('run.py', run_name='__main__')
except SystemExit:
    pass
"""


@pytest.mark.parametrize("args", [["--help"], ["--cfg", "job"]])
def test_asking_imports_nothing_heavy(args):
    out = python(RUN + LOADED, *args)
    assert "LOADED []" in out


def test_a_recorded_run_is_recognised_before_torch(cli, results_dir, tmp_path):
    args = (*TINY, "quant=rtn", "num_samples=64", f"results_dir={results_dir}")
    assert cli(*args).status == 0
    out = python(RUN + LOADED, *args, f"hydra.run.dir={tmp_path}/again")
    assert "LOADED []" in out


def test_the_library_imports_with_torch_alone():
    code = (
        "import sys, flexround, flexround.reconstruction.reconstruction, flexround.models.vision"
        + LOADED
    )
    assert "LOADED ['torch']" in python(code)


def test_a_vision_run_imports_no_transformers_and_no_wandb(cache_dir, results_dir, tmp_path):
    args = [
        "quant=rtn", "model.name=resnet18", "num_samples=64", f"cache_dir={cache_dir}",
        f"results_dir={results_dir}", f"hydra.run.dir={tmp_path}/run", "task=imagenet",
        "imagenet_dir=/nowhere",
    ]  # fmt: skip
    out = python(RUN + LOADED, *args)
    assert "LOADED ['torch', 'torchvision']" in out


@pytest.mark.parametrize("fault", ["ConnectionResetError", "CommError"])
def test_a_run_outlives_the_wandb_that_mirrors_it(cli, tmp_path, results_dir, monkeypatch, fault):
    """Its process may be killed beside a run of hours; that is told once."""
    import wandb

    asked = []

    def gone(self, *_, **__):
        asked.append(1)
        raise getattr(wandb.errors, fault, ConnectionResetError)("Connection lost")

    end = wandb.sdk.wandb_run.Run.finish
    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", gone)
    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "finish", lambda *a, **k: end(*a, **k) or gone(a))
    outcome = cli(*TINY, "quant=flexround", *SHORT, "logger=wandb", f"logger.dir={tmp_path}")
    wandb.teardown()
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("wandb's mirror of the run is not whole: Connection lost") == 1
    assert asked == [1, 1], "one log, and the end"
    (record,) = Store(results_dir).load()
    assert record.status == "ok"


def test_wandb_offline_keeps_the_curves(cli, tmp_path, results_dir):
    import wandb

    outcome = cli(*TINY, "quant=flexround", *SHORT, "logger=wandb", f"logger.dir={tmp_path}")
    assert outcome.status == 0, outcome.err
    wandb.teardown()  # as the end of the process does: the log is complete only then
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    content = log.read_bytes()
    (record,) = Store(results_dir).load()
    for word in (b"loss/blocks.0.0", b"error/after", b"final/top1", record.run_id.encode()):
        assert word in content
    assert "logger" not in json.dumps(record.settings)
    assert run.name.endswith(f"-{record.run_id}"), "another attempt goes on with this wandb run"
