"""A run's name follows what was computed: the bytes of weights and data, never where they lay."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import run  # noqa: F401  registers the schema
from experiment import ROOT, content, versions
from experiment.content import Contents
from experiment.identity import identity, run_id
from experiment.job import portable_overrides
from flexround.models.vision import VisionModel
from results.ledger import kept
from results.records.off import OFF, left_out
from results.records.selection import flatten
from results.records.store import Store
from tasks.language import hub
from tasks.vision import checkpoints
from tests.conftest import TINY
from tests.experiment.test_configs import composed

RTN = (*TINY, "quant=rtn", "bits=8", "num_samples=32")
TEXT = ("model=tiny_llama", "task=text", "quant=rtn")


@pytest.fixture
def name_of(tmp_path):
    """Return a function that composes overrides and returns the run's name."""

    def call(*overrides: str) -> str:
        with initialize_config_module("conf", version_base="1.3"):
            cfg = compose("config", [*overrides, f"cache_dir={tmp_path}/cache"])
        return run_id(identity(cfg))

    return call


def test_what_a_name_leaves_out_because_it_is_off_a_record_is_known_by(tmp_path):
    """One table says both, so that no option is left out that tables do not know of."""
    with initialize_config_module("conf", version_base="1.3"):
        words = ["model=tiny_llama", "quant=flexround", f"cache_dir={tmp_path}/cache"]
        settings = identity(compose("config", words))
    assert not OFF.keys() & flatten(settings).keys()
    assert not settings.keys() & {"transform", "grid", "allocation", "bits_per_layer"}
    assert dict(left_out(settings)) == OFF


def test_a_record_keeps_what_its_run_worked_on_and_not_what_others_have_their_own_of():
    typed = ["quant=rtn", "device=cuda", "logger.project=mine", "recon.compile=true", "seed=1"]
    assert portable_overrides([*typed, "results_dir=/here", "plugins=[a]"]) == [
        "quant=rtn", "device=cuda", "seed=1", "plugins=[a]",
    ]  # fmt: skip


def test_the_order_of_patterns_is_in_a_name_as_the_last_that_fits_counts(name_of):
    one, other = (
        name_of(*TEXT, f"bits_per_layer={{{given}}}")
        for given in ("*: 3, *.down_proj: 8", "*.down_proj: 8, *: 3")
    )
    assert one != other


def test_a_sorted_order_of_patterns_has_the_name_that_it_had(tmp_path):
    with initialize_config_module("conf", version_base="1.3"):
        words = [*TEXT, "bits_per_layer={*: 3, *.down_proj: 8}", f"cache_dir={tmp_path}/cache"]
        settings = identity(compose("config", words))
    assert settings["bits_per_layer"] == {"*": 3, "*.down_proj": 8}


def network(path: Path, noise: float, cache_dir: Path) -> Path:
    """Write the embedded network with noise on its weights."""
    trained = next(cache_dir.glob("checkpoints/digits-test_efficientnet-*.safetensors"))
    model = VisionModel("timm", "test_efficientnet", None, 8, False, False, []).build(10)
    model.load_state_dict(checkpoints.read(trained))
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += noise * torch.randn_like(parameter) * parameter.abs().mean()
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save(model, path)
    return path


@pytest.fixture
def weights(cli, cache_dir, tmp_path):
    """Return two networks under the same relative name in two folders."""
    assert cli(*RTN).status == 0  # trains it where no other test has
    a = network(tmp_path / "a" / "w.safetensors", 0.0, cache_dir)
    b = network(tmp_path / "b" / "w.safetensors", 0.05, cache_dir)
    return a, b


def recorded(results_dir: Path) -> int:
    return len(Store(results_dir).load())


def test_other_weights_under_the_same_relative_words_are_another_run(
    cli, results_dir, weights, monkeypatch
):
    for path in weights:
        monkeypatch.chdir(path.parent)
        outcome = cli(*RTN, "checkpoint=w.safetensors")
        assert outcome.status == 0, outcome.err
        assert "already recorded" not in outcome.err
    assert recorded(results_dir) == 3


def test_a_file_overwritten_under_its_absolute_path_is_another_run(cli, results_dir, weights):
    a, b = weights
    assert cli(*RTN, f"checkpoint={a}").status == 0
    shutil.copyfile(b, a)
    assert "already recorded" not in cli(*RTN, f"checkpoint={a}").err
    assert "already recorded" in cli(*RTN, f"checkpoint={b}").err, "the same file elsewhere"
    assert recorded(results_dir) == 3
    record = Store(results_dir).load()[1]
    assert record.settings["checkpoint"].startswith("sha256:")
    assert record.places["checkpoint"] == str(a)


def test_a_file_of_the_same_size_and_time_is_told_apart(tmp_path):
    path = tmp_path / "w.bin"
    contents = Contents(tmp_path / "kept")
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    first = contents.file(path)
    path.write_bytes(b"two")
    os.utime(path, (1, 1))
    assert contents.file(path) != first


def test_a_second_look_at_a_settled_file_reads_nothing(tmp_path, monkeypatch):
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    monkeypatch.setattr(content, "SETTLED", 0.0)
    contents = Contents(tmp_path / "kept")
    first = contents.file(path)
    monkeypatch.setattr(content, "PIECE", None)  # reading would fail
    assert contents.file(path) == first


def test_a_file_that_is_just_written_is_looked_at_again(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    Contents(tmp_path / "kept").file(path)
    assert not (tmp_path / "kept").exists(), "its times may not show the next write"


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    stamps = iter([[1], [2]])
    monkeypatch.setattr(content, "stamp_of", lambda _: next(stamps))
    with pytest.raises(ValueError, match=r"w\.bin changes while it is read"):
        Contents(tmp_path / "kept").file(path)


def test_weights_that_change_under_a_run_end_it(cli, results_dir, weights, monkeypatch):
    a, b = weights
    build = VisionModel.build

    def swapping(self, *args):
        shutil.copyfile(b, a)
        return build(self, *args)

    monkeypatch.setattr(VisionModel, "build", swapping)
    outcome = cli(*RTN, f"checkpoint={a}")
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1].startswith("error: checkpoint changed while the run was")
    monkeypatch.undo()


def test_text_is_named_by_what_it_holds(name_of, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    (a / "one.txt").write_text("words")
    shutil.copytree(a, b)
    first = name_of(*TEXT, f"data_dir={a}")
    assert name_of(*TEXT, f"data_dir={b}") == first, "the same folder elsewhere"
    (b / "one.txt").write_text("other")
    assert name_of(*TEXT, f"data_dir={b}") != first, "as long as before, other words"
    (a / "two.txt").write_text("more")
    assert name_of(*TEXT, f"data_dir={a}") != first


def test_only_the_files_that_a_task_reads_count(name_of, tmp_path):
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "SST-2").mkdir(exist_ok=True)
        (tmp_path / "SST-2" / name).write_text(name)
    sst2 = ("model=tiny_bert", "task=glue/sst2")
    first = name_of(*sst2, f"data_dir={tmp_path}")
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_text("another subset")
    (tmp_path / "notes.txt").write_text("what a user keeps there")
    assert name_of(*sst2, f"data_dir={tmp_path}") == first
    assert name_of(*sst2, f"data_dir={tmp_path}/SST-2") == first, "the subset's own folder"
    (tmp_path / "SST-2" / "dev.tsv").write_text("changed")
    assert name_of(*sst2, f"data_dir={tmp_path}") != first


@pytest.mark.parametrize(
    ("option", "dir"), [("calibration=text", "calibration_dir"), ("task=text", "data_dir")]
)
def test_every_folder_of_data_enters(name_of, tmp_path, option, dir):
    names = []
    for text in ("one", "two"):
        (tmp_path / "data").write_text(text)
        names.append(
            name_of("model=tiny_llama", "task=python_docs", option, f"{dir}={tmp_path}/data")
        )
    assert len(set(names)) == 2


def images(root: Path) -> None:
    for part in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            (root / part / name).mkdir(parents=True)
            (root / part / name / "a.JPEG").write_bytes(b"")


def test_images_are_named_by_their_classes_and_counts(name_of, tmp_path):
    images(tmp_path / "a")
    task = ("task=imagenet", "model=resnet18", "quant=rtn")
    first = name_of(*task, f"imagenet_dir={tmp_path}/a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert name_of(*task, f"imagenet_dir={tmp_path}/b") == first
    (tmp_path / "b" / "val" / "n01440764" / "b.JPEG").write_bytes(b"")
    more = name_of(*task, f"imagenet_dir={tmp_path}/b")
    assert more != first
    (tmp_path / "b" / "val" / "n01440764" / "b.JPEG").unlink()
    assert name_of(*task, f"imagenet_dir={tmp_path}/b") == first
    (tmp_path / "b" / "val" / "n01728572").mkdir()
    assert name_of(*task, f"imagenet_dir={tmp_path}/b") == first, "an empty class folder"


TASK_FILE = """task: mine
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {data}}}
doc_to_text: !function {folder}/code.text
{more}
"""


@pytest.mark.parametrize("how", ["file", "glob", "folder", "include", "list"])
def test_what_a_task_file_names_elsewhere_is_part_of_its_folder(tmp_path, monkeypatch, how):
    """lm-eval reads it as it reads what lies beside the file."""
    monkeypatch.setattr(content, "SETTLED", 0.0)
    folder, elsewhere = tmp_path / "tasks", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
    rows = elsewhere / "rows.jsonl"
    rows.write_text("1")
    data = {"glob": elsewhere / "*.jsonl", "folder": elsewhere, "list": f"[nowhere.json, {rows}]"}
    text = TASK_FILE.format(data=data.get(how, rows), folder=folder, more="tag: none")
    if how == "include":
        (elsewhere / "_template_yaml").write_text(text)
        text = "include: ../elsewhere/_template_yaml"
    (folder / "mine.yaml").write_text(text)
    contents = Contents(tmp_path / "kept")
    first = contents.tasks(folder)
    rows.write_text("2")
    assert contents.tasks(folder) != first
    rows.write_text("1")
    assert contents.tasks(folder) == first


def test_code_that_a_task_file_names_elsewhere_counts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "SETTLED", 0.0)
    folder, elsewhere = tmp_path / "tasks", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
    (elsewhere / "base.yaml").write_text("doc_to_text: !function utils.text\ninclude: base.yaml")
    (elsewhere / "utils.py").write_text("1")
    (folder / "mine.yaml").write_text(f"include: {elsewhere}/base.yaml")
    contents = Contents(tmp_path / "kept")
    first = contents.tasks(folder)
    (elsewhere / "utils.py").write_text("2")
    assert contents.tasks(folder) != first


@pytest.mark.parametrize(
    "line",
    ["include: beside.yaml", "data_dir: ~", "data_dir: en\ndataset_path: org/name",
     "dataset_path: json\ndataset_kwargs: {data_files: ~nobody_at_all/x.json}", "a: [", "- a"],
)  # fmt: skip
def test_a_folder_of_tasks_is_itself_where_nothing_lies_elsewhere(tmp_path, monkeypatch, line):
    """Nothing of the working folder or of the home counts, whatever is called alike there."""
    for name in ("en", "json"):
        (tmp_path / "here" / name).mkdir(parents=True)
        (tmp_path / "here" / name / "file").write_text("1")
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "beside.yaml").write_text("task: other")
    (folder / "mine.yaml").write_text(line)
    contents = Contents(tmp_path / "kept")
    assert contents.tasks(folder) == contents.data(folder, {}, "")


@pytest.mark.parametrize("how", ["pattern", "two"])
def test_all_files_that_are_called_alike_count(tmp_path, monkeypatch, how):
    monkeypatch.setattr(content, "SETTLED", 0.0)
    folder = tmp_path / "tasks"
    rows = [tmp_path / "data" / name / "deep" / "rows.jsonl" for name in "ab"]
    for file in rows:
        file.parent.mkdir(parents=True)
        file.write_text("1")
    if how == "pattern":
        folder.mkdir()
        (folder / "mine.yaml").write_text(f"data_files: {tmp_path}/data/**/rows.jsonl")
    for file in rows if how == "two" else ():
        own = folder / file.parts[-3]
        own.mkdir(parents=True)
        (own / "mine.yaml").write_text(f"data_files: {file}")
    contents, seen = Contents(tmp_path / "kept"), set()
    for text in ("2", "3"):
        for file in rows:
            file.write_text(text)
            seen.add(contents.tasks(folder))
    assert len(seen) == 4


def test_the_counts_of_many_folders_are_kept(tmp_path, monkeypatch):
    images(tmp_path / "a")
    monkeypatch.setattr(content, "SETTLED", 0.0)
    contents = Contents(tmp_path / "kept")
    first, listed = contents.images(tmp_path / "a"), []
    real = content._entries
    monkeypatch.setattr(content, "_entries", lambda p: listed.append(p.name) or real(p))
    assert contents.images(tmp_path / "a") == first
    assert sorted(listed) == ["train", "val"]


def test_a_class_may_move_to_another_file(tmp_path):
    with initialize_config_module("conf", version_base="1.3"):
        cfg = compose("config", [f"cache_dir={tmp_path}"])
    first = run_id(identity(cfg))
    cfg.quant._target_ = "flexround.somewhere.new.FlexRound"
    assert run_id(identity(cfg)) == first
    cfg.quant._target_ = "flexround.somewhere.new.FlexRound2"
    assert run_id(identity(cfg)) != first


def test_no_two_classes_of_the_configuration_share_a_name():
    """Names are what identity has of them."""
    root = Path(__file__).parents[2] / "conf"
    found = set()

    def walk(node):
        if isinstance(node, dict):
            if "_target_" in node:
                found.add(node["_target_"])
            for value in node.values():
                walk(value)

    for path in root.rglob("*.yaml"):
        walk(OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    names = [target.rpartition(".")[2] for target in found]
    assert len(set(names)) == len(names) > 20


def test_a_local_network_is_named_by_weights_and_configuration(name_of, tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "README.md"):
        (folder / name).write_text(name)
    model = ("model=tiny_llama", "task=python_docs", "quant=rtn")
    first = name_of(*model, f"model.source={folder}")
    (folder / "README.md").write_text("other words about it")
    shutil.copytree(folder, tmp_path / "moved")
    assert name_of(*model, f"model.source={tmp_path}/moved") == first
    assert name_of(*model, f"checkpoint={folder}") == name_of(
        *model, f"checkpoint={tmp_path}/moved", "model.source=tiny:opt"
    ), "a checkpoint is all that is loaded"
    (folder / "config.json").write_text("{}")
    assert name_of(*model, f"model.source={folder}") != first


def test_a_network_of_the_hub_keeps_its_revision(name_of, tmp_path, monkeypatch):
    """A made-up copy of the hub's, as huggingface_hub lays it out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub._newest.cache_clear()
    refs = tmp_path / "hub" / "models--some--net" / "refs"
    model = ("model=tiny_llama", "task=python_docs", "model.source=some/net")
    unknown = name_of(*model)
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc123")
    hub._newest.cache_clear()
    first = name_of(*model)
    assert first != unknown
    assert name_of(*model[:2], "model.source=some/net@abc123") == first
    (refs / "main").write_text("def456")
    hub._newest.cache_clear()
    assert name_of(*model) == first, "what these words stand for here does not move by itself"
    shutil.rmtree(tmp_path / "cache" / "revisions")
    assert name_of(*model) != first
    hub._newest.cache_clear()


def test_another_source_under_a_fine_tuned_network_is_refused(cli, results_dir, tmp_path):
    pytest.importorskip("transformers", reason="the extra language is not installed")
    folder = tmp_path / "ck" / "python_docs" / "tiny_opt"
    folder.mkdir(parents=True)
    facts = {"source": "tiny:opt", "model_source": "tiny:opt", "model_source_digest": "tiny:opt"}
    (folder / "finetune.json").write_text(json.dumps(facts))
    args = ("model=tiny_opt", "task=python_docs", "checkpoint=finetuned", "quant=rtn",
            f"checkpoints_dir={tmp_path}/ck", "model.source=tiny:llama")  # fmt: skip
    outcome = cli(*args)
    assert outcome.status == 1
    assert outcome.err.startswith("error: model.source=tiny:llama is another network than tiny:opt")
    file = folder / "finetune.json"
    file.write_text(json.dumps(facts | {"model_source": "tiny:llama"}))
    assert "tiny:llama does not hold, or not here, what" in cli(*args).err
    for damaged in ("{", "[]"):
        file.write_text(damaged)
        assert cli(*args).err.startswith(f"error: {file} is damaged; fine-tune again")
    assert not list(results_dir.glob("*.json"))


def test_a_failed_run_is_offered_again_when_what_it_depended_on_has_changed(
    cli, results_dir, tmp_path
):
    args = (*RTN, f"checkpoint={tmp_path}/later.safetensors")
    assert "no such file" in cli(*args).err
    again = cli(*args)
    assert "failed before" in again.err
    assert "retry_failed=true" in again.err
    model = VisionModel("timm", "test_efficientnet", None, 8, False, False, []).build(10)
    checkpoints.save(model, tmp_path / "later.safetensors")
    assert "chance is 10.00 %" in cli(*args).err, "it is there now, and read"


def test_a_change_of_the_code_or_of_an_option_offers_a_failed_run_again(
    cli, results_dir, monkeypatch
):
    args = (*TINY, "quant=flexround", "recon.lr=1e30", "recon.iters=3", "num_samples=64")
    assert cli(*args).status == 1
    assert "failed before" in cli(*args).err.splitlines()[-1]
    monkeypatch.setattr("experiment.conditions.code_of", lambda cfg: "another")
    outcome = cli(*args)
    assert "tried again with another code" in outcome.err
    assert "the loss is" in outcome.err.splitlines()[-1]
    (record,) = Store(results_dir).load()
    assert record.conditions["code"] == "another"


def test_results_travel_between_checkouts(cli, results_dir, tmp_path):
    """The same folder under another path, as another machine has it."""
    assert cli(*RTN).status == 0
    shutil.copytree(results_dir, tmp_path / "elsewhere")
    assert "already recorded" in cli(*RTN, f"results_dir={tmp_path}/elsewhere").err


def test_a_class_whose_numbers_have_changed_is_another_run(name_of, monkeypatch):
    """The same settings under a raised version: what is recorded is not today's number."""
    settings = ("quant=rtn", "bits=3")
    before, other = name_of(*settings), name_of(*settings, "ranges=min_max")
    monkeypatch.setitem(versions.VERSIONS, "LpSearch", 2)
    raised = name_of(*settings)
    monkeypatch.setitem(versions.VERSIONS, "LpSearch", 3)
    assert len({before, raised, name_of(*settings)}) == 3
    assert name_of(*settings, "ranges=min_max") == other


def without_versions(node):
    return {
        name: without_versions(value) if isinstance(value, dict) else value
        for name, value in node.items() if name != versions.VERSION
    }  # fmt: skip


@pytest.mark.parametrize("name", ["ledger", "methods", "readme"])
def test_the_records_that_are_kept_are_of_todays_versions(name):
    """A number of before a fault was mended decides no claim and stands in no table."""
    held = kept.read(ROOT / "results" / f"{name}.jsonl")
    assert held
    for record, _ in held:
        today = versions.with_versions(without_versions(record.settings))
        assert record.settings == today, record.command()


def test_static_ranges_have_a_version_where_samples_are_padded():
    static = {"_target_": "StaticPerTensor"}
    names = {}
    for task in ("Classification", "WebNLG", "ScatteredDigits", "LanguageModeling"):
        node = {"task": {"_target_": task}, "activation": static, "model": {"_target_": "any"}}
        names[task] = versions.with_versions(node)["activation"].get("_version_")
    assert names == {
        "Classification": 2, "WebNLG": 2, "ScatteredDigits": None, "LanguageModeling": None,
    }  # fmt: skip


def test_static_ranges_have_a_version_where_a_network_has_more_of_them_than_before():
    for name, version in (("resnet18", None), ("mobilenet_v3_small", 2)):
        node = {
            "task": {"_target_": "ScatteredDigits"},
            "activation": {"_target_": "StaticPerTensor"},
            "model": {"_target_": "VisionModel", "name": name},
        }
        assert versions.with_versions(node)["activation"].get("_version_") == version


def image_version(task, library, name, **given):
    """Return the version of how images are prepared, of settings with the sizes given."""
    settings = {"_target_": task, "preprocessing": {"resize": None, "crop": None} | given}
    node = {"task": settings, "model": {"library": library, "name": name}}
    return versions.with_versions(node)["task"].get("_version_")


def test_timms_images_have_a_version_where_timm_tests_at_another_size_than_it_trains():
    tested = ("ImageNet", "timm", "resnet26d")
    assert image_version(*tested) == image_version(*tested, resize=256) == 4
    assert image_version(*tested, crop=224) == 4
    assert image_version("ImageNet", "timm", "resnet18") == 4, "288, where it was 224"
    assert image_version("ImageNet", "torchvision", "resnet18") is None
    assert image_version(*tested, resize=256, crop=224) == 3, "nothing of the sizes is timm's"


def test_a_text_whose_rows_are_stripped_has_a_version_where_its_file_was_read_as_it_stands(
    tmp_path,
):
    def version(*given):
        cfg = composed("model=opt_125m", *given)
        return identity(cfg)["task"].get("_version_")

    local = f"data_dir={tmp_path}"
    assert version("task=ptb", "protocol=file", local) == 2
    assert version("task=ptb", "protocol=file") is None, "the hub's text has not changed"
    assert version("task=ptb", local) is None, "of rows, which have not"
    assert version("task=wikitext2", "protocol=file", local) is None, "a file as it stands"


def test_timms_images_have_a_version_where_their_resize_was_rounded_up():
    version = image_version
    deit = ("timm", "deit_tiny_patch16_224.fb_in1k")
    assert version("ImageNet", *deit) == 2
    assert version("ImageNet", *deit, resize=249) is None, "as it was asked for"
    assert version("ScatteredDigits", *deit) is None
    assert version("ImageNet", "timm", "tf_efficientnet_lite0") is None, "256, either way"
    assert version("ImageNet", "torchvision", "resnet18") is None


def test_a_renamed_record_of_before_is_no_run_of_a_raised_version(tmp_path):
    """Rekey gives records of the first versions their names: no version is in them."""
    node = {"quant": {"_target_": "SignRound"}, "recon": {"_target_": "Reconstruction"}}
    today = versions.with_versions(node)
    assert today["quant"] == {"_target_": "SignRound", "_version_": 2}
    assert today["recon"] == node["recon"]
    assert run_id(today) != run_id(node)


def test_what_had_another_meaning_for_some_networks_has_a_version_for_them():
    def versions_of(name, task="LanguageModeling", leave=()):
        node = {
            "task": {"_target_": task},
            "model": {"_target_": "LanguageModel", "name": name, "leave": list(leave)},
            "transform": {"_target_": "AWQ", "clip": True},
            "allocation": {"_target_": "DeltaLoss"},
            "activation": {"_target_": "DynamicPerToken", "kv_bits": 8},
        }
        found = versions.with_versions(node)
        return [found[g].get("_version_") for g in ("transform", "allocation", "activation")]

    lrq = {"quant": {"_target_": "LRQ"}, "recon": {"precision": "tf32"}}
    assert versions.with_versions(lrq | {"task": {"_target_": "any"}})["quant"]["_version_"] == 2
    assert versions_of("smollm2_135m") == [None, 2, None]
    assert versions_of("phi3_mini", "WebNLG") == [2, 3, None]
    assert versions_of("tiny_llama", leave=["*.v_proj"]) == [None, 2, 2]
