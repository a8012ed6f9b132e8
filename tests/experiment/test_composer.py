"""Composition of many jobs: what Hydra makes of each, its files read once."""

from __future__ import annotations

import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from omegaconf import OmegaConf, open_dict

from experiment.composer import Composer, parsed_once
from experiment.config import composed
from experiment.identity import identity, plain, run_id
from experiment.sweeps.plan import jobs, plan

# One after the other, so that what one job leaves behind would show in the next.
JOBS = [
    [],
    ["seed=1"],
    ["seed=2"],
    ["seed=2", "bits=3"],
    ["seed=3", "bits=2"],
    ["bits=2", "seed=3"],
    ["act_bits=4"],
    ["act_bits=5"],
    ["act_stem_bits=4"],
    [],
    ["checkpoint=null"],
    ["checkpoint=/somewhere"],
    ["checkpoint=finetuned"],
    ["quant=rtn"],
    ["quant=rtn", "seed=1"],
    ["model=tiny_bert", "task=glue/cola", "quant=rtn", "bits=8"],
    ["model=tiny_bert", "task=glue/cola", "quant=rtn", "bits=2"],
    ["model=tiny_gpt2", "quant=lrq"],
    ["model=tiny_gpt2", "quant=lrq", "quant.rank=8"],
    ["model=tiny_gpt2", "quant=lrq", "quant.rank=16"],
    ["model=tiny_gpt2", "quant=lrq"],
    ["recon.iters=7", "recon.lr=1e-3"],
    ["recon.iters=7.0"],
    ["recon=layer", "recon.iters=7"],
    ["scale=smoke"],
    ["scale=smoke", "seed=5"],
    ["experiment=paper/table02", "seed=4"],
    ["model.leave=[a,b]"],
    ["model.leave=[c]"],
    ["preprocessing.mean=[0.1,0.2,0.3]"],
    ["preprocessing={resize: 300}"],
    ["preprocessing={crop: 200}"],
    ["preprocessing.resize=301"],
    ["activation=static_per_tensor", "act_bits=3"],
    ["activation=static_per_tensor", "act_bits=4"],
    ["clipping=false"],
    ["+quant.seed=1", "seed=1"],
    ["++seed=6"],
    ["seed='7'"],
    ["hydra.job.name=x", "seed=8"],
    ["bits=${seed}", "seed=3"],
    ["bits=${seed}", "seed=4"],
]


def of_hydra(job):
    cfg = composed(job)
    choices = dict(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def test_each_job_is_what_hydra_makes_of_it():
    with parsed_once():
        found = [
            (OmegaConf.to_container(cfg), repr(plain(cfg)), dict(choices), OmegaConf.is_struct(cfg))
            for cfg, choices in Composer().each(JOBS)
        ]
    for job, (raw, resolved, choices, struct) in zip(JOBS, found, strict=True):
        cfg, right = of_hydra(job)
        assert raw == OmegaConf.to_container(cfg), job
        assert resolved == repr(plain(cfg)), job
        assert {k: choices[k] for k in right} == right, job
        assert struct == OmegaConf.is_struct(cfg)


SOUND = of_hydra(["seed=3"])[0]


@pytest.mark.parametrize(
    "job",
    [["quant=nix"], ["bits=x"], ["seeed=1"], ["+bit=1"], ["~seed"], ["quant.nix=1"], ["seed="],
     ["seed=1,2"], ["model=[resnet18,resnet50]"], ["recon=null"], ["experiment=nix"], ["=1"],
     ["quant@x=rtn"], ["seed=${nix}", "bits=[1"], ["idle=3"], ["scale.x=1"], ["a.b.c=1"]],
)  # fmt: skip
def test_what_hydra_refuses_is_refused_in_its_words(job):
    def outcome(make):
        try:
            return OmegaConf.to_container(make())
        except ValueError as error:
            return str(error)

    right = outcome(lambda: of_hydra(job)[0])
    composer = Composer()
    assert outcome(lambda: composer.composed(job)[0]) == right
    # Nothing of the job that failed is left for those to come.
    assert composer.composed(["seed=3"])[0] == SOUND


def test_what_composed_returns_is_the_callers():
    composer = Composer()
    first, _ = composer.composed(["seed=1"])
    second, _ = composer.composed(["seed=2"])
    assert (first.seed, second.seed) == (1, 2)


@pytest.mark.parametrize(
    "sweep",
    [["quant=rtn,flexround", "bits=4,3", "seed=range(2)"],
     ["model=tiny_gpt2,tiny_llama", "quant=gptq", "bits=2,8"],
     ["experiment=paper/table02", "seed=0", "bits=4", "scale=smoke"],
     ["recon.lr=1e-3,1e-4", "quant=adaround", "activation=none,static_per_tensor"]],
    ids=str,
)  # fmt: skip
def test_the_plan_names_runs_as_they_name_themselves(sweep, tmp_path):
    sweep = [*sweep, f"cache_dir={tmp_path}", f"results_dir={tmp_path}"]
    names = [run_id(identity(of_hydra(job)[0])) for job in jobs(sweep)]
    assert [run.run_id for run in plan(sweep)] == names


def test_files_are_not_read_more_often_for_more_runs(tmp_path, monkeypatch):
    read, load = [], FileConfigSource.load_config

    def counted(self, config_path):
        read.append(config_path)
        return load(self, config_path)

    monkeypatch.setattr(FileConfigSource, "load_config", counted)

    def files(seeds):
        read.clear()
        sweep = ["quant=rtn,flexround", "bits=4,3", f"seed=range({seeds})"]
        assert len(plan([*sweep, f"cache_dir={tmp_path}", f"results_dir={tmp_path}"])) == 4 * seeds
        return sorted(read)

    assert files(1) == files(12)


def test_choices_are_merged_once(monkeypatch):
    import experiment.composer

    merged, create = [], experiment.composer.create_defaults_list
    monkeypatch.setattr(
        experiment.composer,
        "create_defaults_list",
        lambda **given: merged.append(1) or create(**given),
    )
    sweep = [[f"quant={q}", f"seed={s}"] for s in range(10) for q in ("rtn", "flexround")]
    assert len([None for _ in Composer().each(sweep)]) == 20
    assert len(merged) == 2


def test_an_old_name_is_told_once(capsys):
    for cfg, _ in Composer().each([["recon.steps=together", f"seed={s}"] for s in range(3)]):
        assert cfg.recon.act_steps == "together"
    assert capsys.readouterr().err.count("is called") <= 1
