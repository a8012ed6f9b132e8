"""Every option of the configuration tree composes and fits what it names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import run  # noqa: F401  registers the schema
from conf.build import validate
from conf.schema import identity, run_id

CONF = Path(__file__).resolve().parent.parent / "conf"
OPTIONS = sorted(
    f"{path.parent.relative_to(CONF)}={path.stem}"
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and not str(path.relative_to(CONF)).startswith("tuned")
)


def composed(*overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", list(overrides))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_fits_its_target(option):
    validate(composed(option, "imagenet_dir=somewhere"))


@pytest.mark.parametrize("path", sorted((CONF / "tuned").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_tuned_file_is_reached_by_the_names_in_its_own(path):
    """A file that no combination of options selects is dead weight, or misspelt."""
    models = [p.stem for p in (CONF / "model").glob("*.yaml")]
    tasks = [p.stem for p in (CONF / "task").rglob("*.yaml")]
    quants = [p.stem for p in (CONF / "quant").glob("*.yaml")]
    names = {"task": [f"{t}_{q}" for t in tasks for q in quants]}
    names["model"] = [f"{m}_{q}" for m in models for q in quants]
    names["pair"] = [f"{t}_{m}_{q}" for t in tasks for m in models for q in quants]
    assert path.stem in names[path.parent.name]


def test_more_specific_tuned_files_win_and_the_command_line_wins_over_all():
    cfg = composed("model=mobilenet_v2", "task=imagenet", "quant=adaround", "imagenet_dir=x")
    assert cfg.quant.reg_weight == 0.1  # BRECQ: MobileNetV2's own lambda
    cfg = composed("quant=flexround", "recon.iters=7")
    assert cfg.recon.iters == 7


@pytest.mark.parametrize(("bits", "lr"), [(4, 4e-4), (3, 4e-4), (2, 1e-3)])
def test_resnets_on_imagenet_use_the_papers_learning_rates(bits, lr):
    cfg = composed("model=resnet18", "task=imagenet", "imagenet_dir=x", f"bits={bits}")
    assert cfg.recon.lr == lr
    assert cfg.recon.iters == 5000


CHANGES = [
    "bits=3", "symmetric=false", "seed=1", "num_samples=64", "quant=adaround", "model=resnet50",
    "recon=layer", "recon.iters=3", "recon.lr=0.1", "quant.learn_s1=false", "ranges=min_max",
    "granularity=per_channel", "checkpoint=x.pth", "model.first_last_bits=null",
]  # fmt: skip


def test_every_setting_that_can_change_the_value_changes_the_run_id():
    ids = [run_id(identity(composed(*change))) for change in [[], *([c] for c in CHANGES)]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    "change",
    ["logger=wandb", "device=cpu", "results_dir=elsewhere", "cache_dir=elsewhere", "rerun=true",
     "progress=false", "group_size=64", "imagenet_dir=x"],
)  # fmt: skip
def test_nothing_else_changes_the_run_id(change):
    assert run_id(identity(composed(change))) == run_id(identity(composed()))


def test_the_same_number_is_the_same_setting():
    ids = {
        run_id(identity(composed("quant=adaround", f"quant.beta_start={b}")))
        for b in ("20", "20.0")
    }
    assert len(ids) == 1


def test_a_new_version_of_a_task_is_another_run():
    assert run_id(identity(composed("task.version=2"))) != run_id(identity(composed()))


def test_round_to_nearest_is_one_run_whatever_the_reconstruction():
    assert run_id(identity(composed("quant=rtn", "recon.iters=9", "recon=layer"))) == run_id(
        identity(composed("quant=rtn"))
    )


def test_the_whole_configuration_resolves():
    OmegaConf.to_container(composed(), resolve=True, throw_on_missing=True)
