"""Every job of every preset has its paper's protocol, which paper_protocols.yaml keeps as data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf._utils import get_yaml_loader

from experiment.build import validate
from experiment.composer import Composer
from experiment.config import composed
from experiment.sweeps.jobs import jobs_of
from experiment.sweeps.plan import EXPERIMENTS, jobs
from results.tables.published_numbers import published
from tests.conftest import some_slow

DATA = yaml.load(
    Path(__file__).with_name("paper_protocols.yaml").read_text(),
    get_yaml_loader(),  # 5e-3 is a number
)
PAPER = sorted(path.stem for path in (EXPERIMENTS / "paper").glob("*.yaml"))
SWEEPS = [*PAPER, *DATA["commands"]]
COMPOSER, FINETUNING = Composer(), Composer("finetune")
# What a job's rules say at least: the rest may be in no source.
ALWAYS = {"granularity", "symmetric", "samples", "calibration"}
# Words whose list of values is swept: together the jobs have all of them.
SWEPT = ("bits", "samples")


@dataclass(frozen=True)
class PresetJob:
    """A job of a sweep: what it was given, the option of each config group, its configuration.

    asked are both of the first as plain values.
    """

    given: dict[str, str]
    asked: dict[str, Any]
    choices: dict[str, str]
    cfg: DictConfig

    def word(self, name: str) -> Any:
        """Return what the job has under a word of the data; None where it has no such setting."""
        cfg = self.cfg
        setting = OmegaConf.select(cfg, SETTINGS[name]) if name in SETTINGS else None
        match name:
            case "granularity":
                return self.choices["granularity"]
            case "act_scheme":
                return None if cfg.activation is None else self.choices["activation"]
            case "calibration":
                return self._calibration()
            case "setting":
                # B: the quantized prefix alone. Q: mixed with the full-precision stream.
                return {"quant": "B", "mixed": "Q"}[cfg.recon.inputs]
            case "beta":
                return [cfg.quant.beta_start, cfg.quant.beta_end]
            case "weights":
                return self._weights()
            case "perplexity":
                return f"{cfg.protocol.name} {cfg.protocol.split} {cfg.protocol.window}"
            case "clipping":
                assert cfg.ranges._target_.endswith("LpSearch")
                return cfg.ranges.candidates > 1
            case "min_max":
                return cfg.ranges._target_.endswith("MinMax")
        assert name in SETTINGS, f"no such word: {name}"
        return setting

    def _calibration(self) -> str:
        """Return own, or the corpus that the task itself takes."""
        if self.choices["task"] == "imagenet":
            return "imagenet train"
        node = self.cfg.task.get("calibration", self.cfg.task.get("calibration_corpus"))
        return "own" if node is None else node.corpus._target_.rpartition(".")[2].lower()

    def _weights(self) -> str:
        checkpoint, source = self.cfg.checkpoint, self.cfg.model.get("library", "own")
        if checkpoint is None:
            return "finetuned" if self.cfg.finetuned else source
        return "brecq" if "/brecq/" in checkpoint else str(checkpoint)

    def selected(self, rule: dict[str, Any], sweep: str) -> bool:
        """Return whether a rule holds for the job."""
        return sweep in rule["of"] and all(
            self.asked[name] in allowed for name, allowed in rule.get("when", {}).items()
        )


SETTINGS = {
    "symmetric": "symmetric", "bits": "bits", "samples": "num_samples", "trials": "seed",
    "edge_bits": "model.first_last_bits", "augment": "task.augment", "seq_len": "task.seq_len",
    "act_bits": "activation.bits", "stem_act_bits": "activation.stem_bits",
    "head_act_bits": "activation.head_bits", "kv_bits": "activation.kv_bits",
    "act_init_samples": "activation.init_samples", "act_ranges_from": "activation.ranges_from",
    "act_inputs": "recon.act_inputs",
    "act_steps": "recon.act_steps", "act_lr": "recon.act_lr", "act_iters": "recon.act_iters",
    "quant_prob": "recon.quant_prob", "iters": "recon.iters", "lr": "recon.lr",
    "batch": "recon.batch_size", "schedule": "recon.schedule", "keep_best": "recon.keep_best",
    "sequential": "recon.sequential", "reg_weight": "quant.reg_weight", "warmup": "quant.warmup",
    "learn_s1": "quant.learn_s1", "use_s3": "quant.use_s3", "use_s4": "quant.use_s4",
    "rank_rule": "quant.rank_rule", "act_order": "quant.act_order", "damp": "quant.damp",
    "block_size": "quant.block_size", "equalize": "model.equalize",
    "absorb_biases": "model.absorb_biases", "max_len": "task.max_len", "stride": "task.stride",
    "beams": "task.beams", "length_penalty": "task.length_penalty",
    "no_repeat_ngram": "task.no_repeat_ngram_size", "harness": "task.tasks",
    "shots": "task.num_fewshot", "prompt_bos": "task.add_bos_token",
}  # fmt: skip


NUMBERS = ("bits", "seed", "num_samples", "recon.lr")


@cache
def jobs_of_sweep(sweep: str) -> list[PresetJob]:
    """Return the jobs of a sweep.

    Those that differ in NUMBERS alone share their composition, into which Hydra too sets them
    afterwards. Of those that differ in their seed there is the first.
    """
    compositions: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}
    found: dict[tuple[str, ...], PresetJob] = {}
    for job in asked(sweep):
        given = dict(text.split("=", 1) for text in job)
        key = tuple(f"{name}={value}" for name, value in given.items() if name not in NUMBERS)
        if key not in compositions:
            compositions[key] = COMPOSER.composed(key)
        cfg, choices = compositions[key]
        own = tuple(text for text in job if not text.startswith("seed="))
        if own not in found:
            cfg = cfg.copy()
            for name in NUMBERS:
                if name in given:
                    OmegaConf.update(cfg, name, yaml.load(given[name], get_yaml_loader()))
            asked_for = choices | {name: yaml.safe_load(value) for name, value in given.items()}
            found[own] = PresetJob(given, asked_for, choices, cfg)
    return list(found.values())


@cache
def asked(sweep: str) -> list[list[str]]:
    """Return the overrides of each job of a sweep."""
    if sweep in PAPER:
        return jobs([f"experiment=paper/{sweep}", "imagenet_dir=somewhere"])
    return jobs_of(DATA["commands"][sweep])


def same(found: Any, right: Any) -> bool:
    """Return whether a value is the data's; true is not 1."""
    if OmegaConf.is_list(found):
        found = list(found)
    return bool(found == right) and isinstance(found, bool) == isinstance(right, bool)


@pytest.mark.parametrize("sweep", some_slow(SWEEPS, ["table15", "table16"]))  # the largest
def test_every_job_has_its_papers_protocol(sweep):
    wrong, swept = [], {}
    for job in jobs_of_sweep(sweep):
        told = set()
        for number, rule in enumerate(DATA["rules"]):
            if not job.selected(rule, sweep):
                continue
            told |= set(rule["holds"])
            for name, right in rule["holds"].items():
                if name == "trials":
                    continue
                found = job.word(name)
                if name in SWEPT and isinstance(right, list):
                    swept.setdefault((number, name), set()).add(found)
                elif not same(found, right):
                    wrong.append(f"{job.given}: {name}: {found}; {rule['source']}: {right}")
        assert told >= ALWAYS, f"{job.given}: no rule for {ALWAYS - told}"
    for (number, name), found in swept.items():
        rule = DATA["rules"][number]
        if found != set(rule["holds"][name]):
            wrong.append(f"{name}: {sorted(found)}; {rule['source']}: {rule['holds'][name]}")
    assert not wrong, "\n".join(dict.fromkeys(wrong))


@pytest.mark.parametrize("sweep", PAPER)
def test_a_preset_has_its_tables_trials(sweep):
    seeds = {text for job in asked(sweep) for text in job if text.startswith("seed=")}
    rules = [rule for rule in DATA["rules"] if sweep in rule["of"] and "trials" in rule["holds"]]
    assert seeds == {f"seed={seed}" for rule in rules for seed in rule["holds"]["trials"]}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_rule_has_jobs_and_a_source(sweep):
    found = jobs_of_sweep(sweep)
    for rule in DATA["rules"]:
        assert rule["source"]
        assert set(rule) <= {"of", "when", "source", "holds"}
        assert set(rule["of"]) <= set(SWEEPS)
        if sweep in rule["of"]:
            assert any(job.selected(rule, sweep) for job in found), rule


@pytest.mark.parametrize("sweep", SWEEPS)
def test_jobs_are_composed_as_hydra_does_and_fit_their_targets(sweep):
    job = jobs_of_sweep(sweep)[-1]
    own = composed([f"{name}={value}" for name, value in job.given.items()])
    assert job.choices.items() <= own.hydra.runtime.choices.items()
    with open_dict(own):
        del own["hydra"]
    assert OmegaConf.to_container(job.cfg) == OmegaConf.to_container(own)
    validate(own)


# Tables of hyper-parameters: what fine-tunes (13, 14, 17) and what reconstructs (18).
GLUE = ("mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte")


@cache
def _of_table(model: str, task: str, method: str) -> DictConfig:
    if method == "fp":
        return FINETUNING.composed([f"model={model}", f"task={task}"])[0]
    return COMPOSER.composed(
        [f"model={model}", f"task={task}", f"quant={method}", "recon=qdrop", "bits=8",
         "activation=static_per_tensor"]
    )[0]  # fmt: skip


@pytest.mark.parametrize("table", ["table13", "table14", "table17", "table18"])
def test_hyper_parameters_are_the_tables(table):
    for cell in published(table):
        tasks = [f"glue/{name}" for name in GLUE] if cell.task == "glue" else [cell.task]
        for task in tasks:
            found = OmegaConf.select(_of_table(cell.model, task, cell.method), cell.metric)
            assert found == cell.value, f"{table} {cell.model} {task} {cell.metric}"
