"""`python finetune.py` and the checkpoints it leaves for `run.py`."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import finetune
from experiment import ROOT
from experiment.__main__ import main as experiment
from experiment.command_line import command_line
from results.records.store import Store
from tasks.language import tiny_models
from tasks.language.classification import Classification
from tasks.language.finetuning import LoRA, Recipe
from tests.tasks.language.test_classification import sentiment

transformers = pytest.importorskip("transformers", reason="the extra language is not installed")
pytest.importorskip("peft", reason="the extra language is not installed")


# Takes a claim and keeps it until it is killed.
HOLDER = """
import sys, time
from results.records.claim import Claim
assert Claim(sys.argv[1]).take() is None
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def tune(monkeypatch, cache_dir, tmp_path):
    """Return a function that runs the command here and returns its exit message, or None."""

    def call(*args):
        own = [f"cache_dir={cache_dir}", f"checkpoints_dir={tmp_path}/ck",
               f"hydra.run.dir={tmp_path}/out", "device=cpu"]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["finetune.py", *args, *own])
        try:
            command_line(finetune.main)
        except SystemExit as end:
            return str(end.code)
        return None

    return call


def facts(folder):
    return json.loads((folder / "finetune.json").read_text())


def test_glue_is_fine_tuned_and_found_by_the_run(tune, cli, tmp_path, results_dir):
    sentiment(tmp_path)
    here = ["model=tiny_bert", "task=glue/sst2", f"data_dir={tmp_path}"]
    assert tune(*here, "recipe.lr=2e-3", "recipe.epochs=8") is None
    made = facts(tmp_path / "ck" / "glue" / "sst2" / "tiny_bert")
    assert made["metrics"]["accuracy"] > 95, "three words tell the class"
    assert made["recipe"]["epochs"] == 8
    outcome = cli(*here, f"checkpoints_dir={tmp_path}/ck", "quant=rtn", "bits=8", "num_samples=8")
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    assert record.fp_metrics == pytest.approx(made["metrics"])
    assert record.finetuning["task"] == "glue/sst2"
    assert record.finetuning["recipe"] == made["recipe"]
    assert str(tmp_path) not in str(record.finetuning), "a record names no place but in places"
    # Another network under the same name is another run.
    assert tune(*here, "recipe.lr=1e-3", "recipe.epochs=8", "rerun=true") is None
    cli(*here, f"checkpoints_dir={tmp_path}/ck", "quant=rtn", "bits=8", "num_samples=8")
    assert len(Store(results_dir).load()) == 2


def test_rows_of_other_data_or_another_cut_are_another_network(tune, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        sentiment(tmp_path / name)
    (tmp_path / "other" / "train.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    quick = ["model=tiny_bert", "task=glue/sst2", "recipe.max_steps=1"]
    assert tune(*quick, f"data_dir={tmp_path}/one") is None
    (tmp_path / "one").rename(tmp_path / "moved")
    assert tune(*quick, f"data_dir={tmp_path}/moved") is None, "the same data elsewhere"
    assert "was fine-tuned with rows.data.local=sha256:" in tune(
        *quick, f"data_dir={tmp_path}/other"
    )
    shorter = tune(*quick, f"data_dir={tmp_path}/moved", "task.max_len=16")
    assert "was fine-tuned with rows.max_len=128, not 16; give rerun=true" in shorter


def test_two_processes_do_not_train_one_network(tune, tmp_path):
    sentiment(tmp_path)
    folder = tmp_path / "ck" / "glue" / "sst2" / "tiny_bert"
    folder.parent.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", HOLDER, f"{folder}.claim"],
                             stdout=subprocess.PIPE, text=True, cwd=ROOT)  # fmt: skip
    try:
        assert other.stdout.readline() == "held\n"
        quick = ["model=tiny_bert", "task=glue/sst2", "recipe.max_steps=1", f"data_dir={tmp_path}"]
        told = tune(*quick)
        assert f" is fine-tuning {folder}; wait for it" in told
        assert str(other.pid) in told
        assert not folder.exists()
    finally:
        other.kill()
        other.wait()
    assert tune(*quick) is None, "of a dead one the claim is taken over"


def test_a_language_model_is_fine_tuned_on_its_corpus(tune, cli, tmp_path, results_dir, capsys):
    here = ["model=tiny_opt", "task=python_docs", "protocol.window=64", "task.seq_len=64"]
    run = ["protocol.max_windows=20", "quant=rtn", "num_samples=8"]
    assert cli(*here, *run).status == 0
    assert tune(*here, "recipe.lr=1e-3", "recipe.max_steps=40") is None
    tuned = [*here, *run, "checkpoint=finetuned", f"checkpoints_dir={tmp_path}/ck"]
    assert cli(*tuned).status == 0
    before, after = sorted(
        (r.fp_metrics["perplexity"] for r in Store(results_dir).load()), reverse=True
    )
    assert after < 0.95 * before
    capsys.readouterr()
    again = [*here, "recipe.lr=1e-3", "recipe.max_steps=40"]
    assert tune(*again) is None, "already there, nothing to do"
    folder = tmp_path / "ck" / "python_docs" / "tiny_opt"
    assert tune(*here, "recipe.lr=1e-3", "recipe.max_steps=1", "seed=1") == (
        f"error: {folder} was fine-tuned with seed=0, not 1; recipe.max_steps=40, not 1; give "
        "rerun=true to make it again, or another checkpoints_dir="
    )
    assert "source_digest=tiny:opt, not tiny:llama" in tune(*again, "model.source=tiny:llama")
    cut = [text.replace("window=64", "window=32") for text in again]
    assert "rows.protocol.window=64, not 32" in tune(*cut)
    assert tune(*again, "protocol.max_windows=3") is None, "of the evaluation alone"
    assert not list(folder.parent.glob("*.claim"))
    assert facts(folder)["recipe"]["max_steps"] == 40
    assert "rows.begin_with_bos=false, not true" in tune(*again, "task.begin_with_bos=true")
    config = json.loads((folder / "config.json").read_text())
    assert config["use_cache"] is True, "as it was, whatever an evaluation needs"


def test_a_network_whose_evaluation_fails_is_kept_and_evaluated_by_the_next_command(
    tune, cli, tmp_path, monkeypatch
):
    here = ["model=tiny_bert", "task=glue/sst2", f"data_dir={sentiment(tmp_path)}"]
    recipe = ["recipe.lr=2e-3", "recipe.max_steps=4"]
    folder = tmp_path / "ck" / "glue" / "sst2" / "tiny_bert"
    kept = folder.with_name("tiny_bert.unevaluated")
    with monkeypatch.context() as broken:

        def evaluate(*_):
            raise ValueError("outputs are nan")

        broken.setattr(Classification, "evaluate", evaluate)
        told = tune(*here, *recipe)
    assert told == (
        f"error: outputs are nan; the trained network is whole in {kept}: give the command again "
        f"to evaluate it, run.py checkpoint={kept} to use it as it is, or delete it to train anew"
    )
    assert not folder.exists(), "nothing takes it for one that is finished"
    assert "metrics" not in facts(kept)
    weights = (kept / "model.safetensors").read_bytes()
    run = ["quant=rtn", "bits=8", "num_samples=8"]
    missing = cli(*here, f"checkpoints_dir={tmp_path}/ck", *run)
    assert "there is no tiny_bert fine-tuned for glue/sst2" in missing.err
    given = cli(*here, f"checkpoint={kept}", *run)
    assert "never trained" not in given.err
    trained = []
    train = Recipe.train
    monkeypatch.setattr(Recipe, "train", lambda *args: trained.append(1) or train(*args))
    assert tune(*here, *recipe) is None
    assert not trained, "it was trained before"
    assert not kept.exists()
    assert (folder / "model.safetensors").read_bytes() == weights
    assert facts(folder)["metrics"].keys() == {"accuracy"}
    assert facts(folder)["recipe"]["max_steps"] == 4
    # What was made of something else is not taken for it.
    folder.rename(kept)
    assert tune(*here, *recipe, "seed=1") is None
    assert trained
    assert (facts(folder)["seed"], kept.exists()) == (1, False)


def test_rerun_evaluates_no_network_of_other_code(tune, tmp_path, monkeypatch):
    """What it is to replace may be of code that has been mended since."""
    here = ["model=tiny_bert", "task=python_topics", "recipe.max_steps=1", "rerun=true"]
    trained, train = [], Recipe.train
    monkeypatch.setattr(Recipe, "train", lambda *args: trained.append(1) or train(*args))
    assert tune(*here) is None
    folder = tmp_path / "ck" / "python_topics" / "tiny_bert"
    kept = folder.with_name("tiny_bert.unevaluated")
    for code, times in ((facts(folder)["code"], 1), ("0123456789abcdef", 2)):
        folder.rename(kept)
        told = facts(kept) | {"code": code}
        (kept / "finetune.json").write_text(json.dumps(told))
        assert tune(*here) is None
        assert len(trained) == times


def test_a_trained_network_survives_what_ends_the_command_at_its_last_step(
    tune, tmp_path, monkeypatch
):
    here = ["model=tiny_bert", "task=python_topics", "recipe.max_steps=1"]
    kept = tmp_path / "ck" / "python_topics" / "tiny_bert.unevaluated"

    rename = type(kept).rename

    def interrupted(self, target):
        if self == kept:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as broken:
        broken.setattr(type(kept), "rename", interrupted)
        tune(*here)
    assert (kept / "model.safetensors").is_file()
    assert tune(*here) is None
    assert not kept.exists()
    # What it is to take the place of stays as well.
    folder = kept.with_name("tiny_bert")
    with monkeypatch.context() as broken:
        broken.setattr(type(kept), "rename", interrupted)
        tune(*here, "rerun=true")
    assert (folder / "model.safetensors").is_file()
    assert kept.exists()


def test_data_that_the_evaluation_lacks_are_missed_before_the_training(tune, tmp_path, monkeypatch):
    sentiment(tmp_path)
    (tmp_path / "dev.tsv").unlink()
    monkeypatch.setattr(Recipe, "train", lambda *_: pytest.fail("it trains"))
    told = tune("model=tiny_bert", "task=glue/sst2", f"data_dir={tmp_path}", "recipe.max_steps=1")
    assert "has dev.tsv" in told


LORA = [("gpt2", "c_attn"), pytest.param("llama", "q_proj,v_proj", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("family", "targets"), LORA)
def test_lora_is_merged_into_a_plain_checkpoint(tune, cli, tmp_path, family, targets):
    here = [f"model=tiny_{family}", "task=python_docs", "protocol.window=64", "task.seq_len=64"]
    lora = ["recipe=lora", f"recipe.lora.targets=[{targets}]", "recipe.lr=1e-2"]
    assert tune(*here, *lora, "recipe.max_steps=20") is None
    folder = tmp_path / "ck" / "python_docs" / f"tiny_{family}"
    assert not (folder / "adapter_config.json").exists()
    auto = transformers.AutoModelForCausalLM
    before, _ = tiny_models.load(f"tiny:{family}", tmp_path, auto)
    after = auto.from_pretrained(folder)
    changed = [
        n for n, w in after.state_dict().items() if not torch.equal(w, before.state_dict()[n])
    ]
    assert changed, "LoRA has trained something"
    assert all(name.split(".")[-2] in targets.split(",") for name in changed)
    name = changed[0]
    rank = torch.linalg.matrix_rank(
        (after.state_dict()[name] - before.state_dict()[name]), rtol=1e-4
    )
    assert 1 <= rank <= 4
    outcome = cli(*here, "checkpoint=finetuned", f"checkpoints_dir={tmp_path}/ck", "quant=rtn",
                  "num_samples=8", "protocol.max_windows=2")  # fmt: skip
    assert outcome.status == 0, outcome.err


def test_lora_starts_from_weights_that_the_seed_draws(monkeypatch):
    recipe = Recipe(1e-4, 4, 1, None, 0.0, 0, 0.0, LoRA(4, 32, 0.1, ["q_proj"]), None)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)

    def first(state, seed):
        network = transformers.LlamaForCausalLM(config)
        torch.manual_seed(state)  # what an earlier job of the process has left
        trained = begun(monkeypatch, recipe, network, "cpu", seed).model
        (found,) = (w for name, w in trained.named_parameters() if "lora_A" in name)
        return found.detach().clone()

    own = first(0, seed=0)
    assert torch.equal(first(123, seed=0), own)
    assert not torch.equal(first(0, seed=1), own)


SMALL = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip
HEADS = [
    ("Llama", "SequenceClassification", "q_proj", ["score"]),
    ("Bert", "SequenceClassification", "query", ["bert.pooler.dense", "classifier"]),
    ("Bert", "QuestionAnswering", "query", ["qa_outputs"]),
    ("Llama", "CausalLM", "q_proj", []),
]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("task", ["SequenceClassification", "CausalLM"])
def test_a_step_in_parts_is_the_step(task, smoothing):
    """Rows of unlike lengths too: a token counts as much whichever part it is in."""
    pad, torn = {"input_ids": 0, "attention_mask": 0, "labels": -100}, range(1, 9)
    draws = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": [*torch.randint(2, 50, (n,), generator=draws).tolist(), *[0] * (8 - n)],
         "attention_mask": [1] * n + [0] * (8 - n)}
        for n in torn
    ]  # fmt: skip
    for row, n in zip(rows, torn, strict=True):
        causal = [*row["input_ids"][:n], *[pad["labels"]] * (8 - n)]
        row["labels"] = causal if task == "CausalLM" else n % 2

    def trained(at_once):
        torch.manual_seed(0)
        network = getattr(transformers, f"LlamaFor{task}")(
            transformers.LlamaConfig(**SMALL, pad_token_id=0)
        )
        recipe = Recipe(1e-2, 8, 1, 2, 0.0, 0, smoothing, None, at_once)
        collate = transformers.default_data_collator
        return recipe.train(network, rows, collate, 0, torch.device("cpu")).state_dict()

    whole, begin = trained(None), trained(8)
    for at_once in (4, 2):
        for name, weight in trained(at_once).items():
            torch.testing.assert_close(weight, whole[name], rtol=1e-3, atol=2e-5)
    assert all(torch.equal(begin[name], whole[name]) for name in whole)


def test_rows_at_once_are_of_what_is_made_where_they_are_given(tune, tmp_path):
    here = ["model=tiny_bert", "task=glue/sst2", f"data_dir={sentiment(tmp_path)}"]
    recipe = ["recipe.max_steps=1", "recipe.batch_size=8"]
    assert tune(*here, *recipe) is None
    made = facts(tmp_path / "ck" / "glue" / "sst2" / "tiny_bert")
    assert "device_batch_size" not in made["recipe"], "as of networks that were made before"
    told = tune(*here, *recipe, "recipe.device_batch_size=3")
    assert "recipe.device_batch_size=3 does not divide recipe.batch_size=8; give a" in told
    assert tune(*here, *recipe, "recipe.device_batch_size=4", "rerun=true") is None
    assert "recipe.device_batch_size=4, not null" in tune(*here, *recipe)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "task", "target", "heads"), HEADS)
def test_under_lora_a_head_trains_and_is_left_as_a_plain_module(family, task, target, heads, dtype):
    """It may have been drawn a moment ago; a language model's output is no such head."""
    config = getattr(transformers, f"{family}Config")(**SMALL, pad_token_id=0)
    network = getattr(transformers, f"{family}For{task}")(config).to(dtype)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    labels = {
        "SequenceClassification": {"labels": 1}, "CausalLM": {"labels": [3, 4, 5]},
        "QuestionAnswering": {"start_positions": 1, "end_positions": 2},
    }[task]  # fmt: skip
    rows = [{"input_ids": [3, 4, 5], **labels}] * 4
    recipe = Recipe(1e-2, 2, 1, 2, 0.0, 0, 0.0, LoRA(4, 32, 0.0, [target]), None)
    done = recipe.train(network, rows, transformers.default_data_collator, 0, torch.device("cpu"))
    after = done.state_dict()
    assert after.keys() == before.keys()
    changed = {
        name.removesuffix(".weight").removesuffix(".bias") for name, tensor in after.items()
        if not torch.equal(tensor.to(dtype), before[name])
    }  # fmt: skip
    assert {name for name in changed if not name.endswith(target)} == set(heads)
    assert any(name.endswith(target) for name in changed)
    for name in heads:
        assert type(done.get_submodule(name)) is torch.nn.Linear


def test_lora_learns_the_same_of_a_network_in_float16_as_in_float32(tmp_path):
    """Of the mean over Table 23's 130,944 tokens a logit's gradient is 1e-7, float16's last digit.

    Only the merged weights are rounded, once.
    """
    draws = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": ids, "labels": ids} for ids in torch.randint(50, (128, 1024), generator=draws)
    ]
    recipe = Recipe(1e-2, 128, 1, 2, 0.0, 0, 0.0, LoRA(4, 32, 0.0, ["q_proj", "v_proj"]), 16)
    torch.manual_seed(0)
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).half()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def trained(network):
        collate = transformers.default_data_collator
        return recipe.train(network, rows, collate, 0, torch.device("cpu"))

    full = trained(copy.deepcopy(network).float()).state_dict()
    done = trained(network)
    done.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    for name, weight in done.state_dict().items():
        assert torch.equal(weight, full[name].half()), name
        is_trained = name.endswith(("q_proj.weight", "v_proj.weight"))
        assert torch.equal(weight, before[name]) != is_trained


def test_a_layer_that_lora_does_not_find_is_named():
    config = transformers.LlamaConfig(**SMALL, pad_token_id=0)
    classifier = transformers.LlamaForSequenceClassification(config)
    with pytest.raises(ValueError, match=r"targets=\['score'\]: Llama\w+ has no such layers"):
        LoRA(4, 32, 0.0, ["score"]).add_to(classifier)
    with pytest.raises(ValueError, match=r"targets=\['nothing'\]: Linear has no such layers"):
        LoRA(4, 32, 0.0, ["nothing"]).add_to(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"recipe.lr=0.0: give a number above 0"):
        Recipe(0.0, 1, 1, None, 0.0, 0, 0.0, None, None)


class Begun(Exception):
    """Training has begun, of which a test wants no more."""


def begun(monkeypatch, recipe, network, device, seed=0):
    """Return the Trainer of a recipe as it is when it begins to train."""
    found = []

    def train(trainer):
        found.append(trainer)
        raise Begun

    monkeypatch.setattr(transformers.Trainer, "train", train)
    rows = [{"input_ids": [1, 2], "labels": [1, 2]}] * 8
    with pytest.raises(Begun):
        recipe.train(network, rows, None, seed, torch.device(device))
    return found[0]


def pretended(monkeypatch, gpus):
    """Have the Trainer see so many GPUs; return its state, and where modules are moved to."""
    from accelerate.utils import DistributedType
    from transformers import training_args

    state = SimpleNamespace(
        distributed_type=DistributedType.NO, device=torch.device("cuda:0"), backend=None,
        local_process_index=0, process_index=0, num_processes=1, is_main_process=True,
    )  # fmt: skip
    for name, value in {"is_available": True, "device_count": gpus, "set_device": None,
                        "_lazy_init": None, "is_bf16_supported": True}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value, **kwargs: value)
    monkeypatch.setattr(training_args, "PartialState", lambda **kwargs: state)
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda net, to, **k: moved.append(to) or net)
    return state, moved


@pytest.mark.parametrize("gpus", [1, 4])
def test_fine_tuning_is_on_the_chosen_gpu_alone_and_of_its_own_batch(monkeypatch, gpus):
    """The Trainer by itself has a batch for each GPU that it sees, beginning with cuda:0."""
    chosen = torch.device("cuda", gpus - 1)
    state, moved = pretended(monkeypatch, gpus)
    recipe = Recipe(2e-5, 32, 3, None, 0.01, 0, 0.0, None, None)
    trainer = begun(monkeypatch, recipe, torch.nn.Linear(2, 2), chosen)
    assert (trainer.args.train_batch_size, trainer._train_batch_size) == (32, 32)
    assert (trainer.args.n_gpu, trainer.args.device, state.device) == (1, chosen, chosen)
    assert set(moved) == {chosen}


@pytest.mark.parametrize(
    ("dtype", "lora", "scaled"),
    [(torch.float16, True, True), (torch.bfloat16, True, False), (torch.float32, True, False),
     (torch.float16, False, False)],
)  # fmt: skip
def test_on_a_gpu_the_loss_of_a_float16_network_is_scaled(monkeypatch, dtype, lora, scaled):
    """What trains is float32 in any case, as a scaler wants it; without LoRA all of the network."""
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).to(dtype)
    pretended(monkeypatch, 1)
    low_rank = LoRA(4, 32, 0.0, ["q_proj"]) if lora else None
    recipe = Recipe(1e-4, 4, 1, None, 0.0, 0, 0.0, low_rank, None)
    trainer = begun(monkeypatch, recipe, network, "cuda")
    assert trainer.args.fp16 is scaled
    assert (trainer.accelerator.scaler is not None) is scaled
    assert {w.dtype for w in trainer.model.parameters() if w.requires_grad} == {torch.float32}
    frozen = {w.dtype for w in trainer.model.parameters() if not w.requires_grad}
    assert frozen == ({dtype} if lora else set())


def test_accelerate_takes_the_device_that_the_trainer_was_given(monkeypatch):
    """cpu:0 is the CPU by a name that neither library would choose."""
    named, recipe = torch.device("cpu", 0), Recipe(2e-5, 32, 3, None, 0.01, 0, 0.0, None, None)
    trainer = begun(monkeypatch, recipe, torch.nn.Linear(2, 2), named)
    assert (trainer.args.device, trainer.accelerator.device) == (named, named)
    assert (trainer.args.n_gpu, trainer.args.train_batch_size) == (0, 32)


@pytest.mark.parametrize(
    ("args", "message"),
    [(["model=tiny_bert", "bits=3"], "bits=3 does nothing in fine-tuning"),
     (["model=tiny_bert", "expected_fp=10"], "expected_fp=10 does nothing in fine-tuning"),
     (["model=resnet18"], "no fine-tuning for vision tasks"),
     (["model=tiny_bert", "task=python_docs"], "the model is encoder, the task is for causal"),
     (["model=tiny_bert", "recipe.lrr=1"], "did you mean lr?"),
     (["model=tiny_bert", "lr=1"], "did you mean recipe.lr?"),
     (["model=tiny_llama", "task=zero_shot", "task.seq_len=64"], "zero_shot has no tr"),
     (["model=tiny_bert", "task=glue/sst2", "data_dir=nowhere"],
      "give the folder of train.tsv, dev.tsv")],
)  # fmt: skip
def test_bad_input_is_one_line(tune, args, message):
    assert message in tune(*args)


@pytest.mark.parametrize(
    ("module", "args", "extra"),
    [("transformers", ["task=python_docs"], "language"),
     ("datasets", ["task=wikitext2", "task.seq_len=64", "protocol.window=64"], "language"),
     ("lm_eval", ["task=zero_shot", "calibration=python_docs"], "zero-shot")],
)  # fmt: skip
def test_a_run_without_an_extra_names_it(cli, monkeypatch, module, args, extra):
    monkeypatch.setitem(sys.modules, module, None)
    outcome = cli("model=tiny_llama", "quant=rtn", *args)
    assert outcome.status == 1
    assert f"error: {module} is not installed; pip install -e '.[{extra}]'" in outcome.err


@pytest.mark.parametrize("module", ["peft", "accelerate"])
def test_fine_tuning_without_an_extra_names_it(tune, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    message = tune("model=tiny_gpt2", "task=python_docs", "protocol.window=64", "recipe=lora",
                   "recipe.lora.targets=[c_attn]", "task.seq_len=64")  # fmt: skip
    assert message == f"error: {module} is not installed; pip install -e '.[language]'"


def test_a_sweep_of_fine_tuning_ends_well(tune, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finetune, "finetune", lambda cfg: tmp_path / "made")
    sweep = tmp_path / "sweep"
    models = "model=tiny_bert,tiny_opt"
    # An option of one member is none that does nothing in the sweep.
    mixed = ("task=python_docs,text", "model=tiny_opt", f"data_dir={tmp_path}", "task.seq_len=64")
    assert tune("-m", *mixed, f"hydra.sweep.dir={tmp_path}/mixed") is None
    assert tune("-m", models, "task=python_topics", f"hydra.sweep.dir={sweep}") is None
    assert json.loads((sweep / "1" / "outcome.json").read_text())["checkpoint"].endswith("made")
    # Its status is read, and finished by the same door.
    assert experiment(["status", str(sweep)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{sweep}: 2 runs, 2 done"
    (sweep / "1" / "outcome.json").unlink()
    assert experiment(["status", str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{sweep}: 2 runs, 1 done, 1 lost"
    assert lines[-1].startswith(f"  python finetune.py -m {models} task=python_topics")
