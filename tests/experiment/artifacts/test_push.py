"""The card's front matter as the hub reads it, and `python artifact.py push`."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil

import pytest
import yaml

import tasks
from experiment.artifacts import front_matter
from experiment.artifacts.push import CARD
from flexround.artifact.header import FILE
from results.records.record import Record
from results.records.store import Store
from tasks.vision.trained import TrainedTask
from tests.conftest import TINY

hub = pytest.importorskip("huggingface_hub")
LLAMA = ("model=tiny_llama", "quant=rtn", "bits=3", "num_samples=8", "progress=false")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return where the one run of this file is kept, for all of its tests."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def saved(cli, results_dir, made, tmp_path):
    """Return the record of a run of a tiny LLaMA, and a copy of its artifact."""
    if not (made / "artifact").exists():
        outcome = cli(*LLAMA, "save=true")
        assert outcome.status == 0, outcome.err
        (path,) = results_dir.glob("*.json")
        shutil.copy(path, made)
        shutil.copytree(Store(results_dir).artifact(path.stem), made / "artifact")
    (record,) = Store(made).load()
    return record, shutil.copytree(made / "artifact", tmp_path / "artifact")


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    """Have nobody logged in."""
    monkeypatch.setattr(hub, "get_token", lambda: None)


class Hub:
    """What a push has asked of the hub; with error it is raised instead."""

    def __init__(self, monkeypatch, error=None):
        self.repos, self.files = [], {}
        self._error = error
        monkeypatch.setattr(hub, "get_token", lambda: "a token")
        monkeypatch.setattr(hub, "HfApi", lambda: self)

    def create_repo(self, to, private, exist_ok):  # noqa: D102
        if self._error is not None:
            raise self._error
        self.repos.append((to, private))
        return f"https://huggingface.co/{to}"

    def create_commit(self, to, operations, commit_message):  # noqa: D102
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()


def run(source=None, task=None, model="a", bits=4, quant="flexround", model_node=None, **settings):
    """Return a record of a network by its source."""
    own = {"_target_": "LanguageModel", "kind": "causal"} | ({"source": source} if source else {})
    settings = {
        "model": model_node or own,
        "task": {"_target_": "LanguageModeling"} | (task or {}),
    } | settings
    return Record(
        "0" * 16, "ok", model, "wikitext2", 1, quant, bits, 0, "perplexity", False, 10.0, 9.0,
        settings, {"perplexity": 10.0, "kl": 0.5}, {"perplexity": 9.0},
    )  # fmt: skip


def test_the_hub_reads_the_cards_front_matter(saved):
    record, folder = saved
    card = hub.ModelCard((folder / CARD).read_text())
    assert card.data.license == "apache-2.0", "a network that was trained here"
    assert card.data.pipeline_tag == "text-generation"
    assert {"rtn", "3-bit", "w3a16", "quantized"} <= set(card.data.tags)
    assert set(card.data.metrics) == set(record.metrics)
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == record.metrics
    assert {result.dataset_name for result in card.data.eval_results} == {"python_docs"}
    assert card.text.lstrip().startswith("# tiny_llama, 3 bit by rtn")


def test_so_it_does_of_a_vision_model(cli, results_dir):
    outcome = cli(*TINY, "quant=rtn", "bits=3", "num_samples=64", "progress=false", "save=true")
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    card = hub.ModelCard((Store(results_dir).artifact(record.run_id) / CARD).read_text())
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.metrics == ["accuracy"]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_name) == ("accuracy", "top1")
    assert result.metric_value == record.value
    assert "w3a32" in card.data.tags


@pytest.mark.parametrize(
    ("record", "base", "license"),
    [
        (run("meta-llama/Llama-2-7b-hf@abc"), "meta-llama/Llama-2-7b-hf", "other"),
        (run("gpt2-large"), "gpt2-large", "other"),
        (run("a" * 64), None, "other"),
        (run("tiny:llama"), None, "apache-2.0"),
        (run("/home/me/net"), None, "other"),
        (run("a/b", checkpoint="c/d@1"), "c/d", "other"),
        (run("a/b", checkpoint="f" * 64), None, "other"),
        (run("tiny:llama", checkpoint="f" * 64), None, "other"),
    ],
)
def test_the_base_model_is_the_hubs_id_and_the_license_its_own(record, base, license):
    assert front_matter.base_model(record) == base
    found = front_matter.fields(record)
    assert found.get("base_model") == base
    assert found.get("base_model_relation") == (None if base is None else "quantized")
    assert found["license"] == license
    if license == "other":
        assert found["license_name"]
        assert found.get("license_link") == (base and f"https://huggingface.co/{base}")


def vision(task, **settings):
    model = {"_target_": "VisionModel", "library": "timm", "weights": "a.b"}
    return run(task={"_target_": task}, model_node=model, **settings)


def test_a_network_that_its_task_has_trained_has_this_repositorys_license():
    for module in pkgutil.walk_packages(tasks.__path__, "tasks."):
        importlib.import_module(module.name)
    trained = sorted(kind.__name__ for kind in TrainedTask.__subclasses__() if is_ours(kind))
    assert "ScatteredDigits" in trained, "the default"
    for task in trained:
        assert front_matter.fields(vision(task))["license"] == "apache-2.0", task
        given = vision(task, checkpoint="f" * 64)
        assert front_matter.fields(given)["license"] == "other", "of who made the checkpoint"
    assert front_matter.fields(vision("ImageNet"))["license"] == "other"


def is_ours(kind):
    return kind.__module__.startswith("tasks.")


def test_odd_words_stay_one_value_of_the_block():
    record = run("a/b", model="x: [y]\n---\n# z", quant="'\"{")
    text = front_matter.front_matter(record)
    head, block, rest = text.split("---\n", 1)[0], *text.removeprefix("---\n").rsplit("---\n", 1)
    assert (head, rest) == ("", "")
    assert yaml.safe_load(block) == front_matter.fields(record)


def test_a_dry_run_prints_what_would_go_and_needs_nobody(saved, tool, no_login):
    _, folder = saved
    status, out, err = tool("push", folder, "--to", "me/tiny", "--dry-run", "--license", "mit")
    assert status == 0, err
    assert "to me/tiny, nothing is sent" in out
    for path in folder.iterdir():
        assert path.name in out
    assert f"{(folder / FILE).stat().st_size:,}" in out
    assert "license: mit" in out
    assert "apache" not in out
    assert "license: apache-2.0" in (folder / CARD).read_text(), "the folder stays as it is"


def test_a_push_sends_every_file_in_one_commit(saved, tool, monkeypatch):
    _, folder = saved
    (folder / ".cache").mkdir()
    (folder / ".cache" / "secret").write_text("x")
    there = Hub(monkeypatch)
    status, out, err = tool("push", folder, "--to", "me/tiny", "--private")
    assert status == 0, err
    assert there.repos == [("me/tiny", True)]
    assert "https://huggingface.co/me/tiny" in out
    sent = {path.name for path in folder.iterdir() if path.is_file()}
    assert set(there.files) == sent
    for name in sent:
        assert there.files[name] == (folder / name).read_bytes()


def test_an_artifact_of_before_front_matter_gets_a_card_with_it(saved, tool, monkeypatch):
    record, folder = saved
    (folder / CARD).write_text("# mine\n")
    there = Hub(monkeypatch)
    assert tool("push", folder, "--to", "me/tiny")[0] == 0
    card = hub.ModelCard(there.files[CARD].decode())
    assert {r.metric_value for r in card.data.eval_results} == set(record.metrics.values())
    own = "---\nlicense: mit\ntags: [a]\n---\n# edited\n"
    (folder / CARD).write_text(own)
    assert tool("push", folder, "--to", "me/tiny")[0] == 0
    assert there.files[CARD].decode() == own, "one that has some stays as it is"


@pytest.mark.parametrize("to", ["me", "a/b/c", "", "me/../x", "me/ tiny", "/tiny", "me/"])
def test_a_name_that_is_none_is_one_line(tool, to):
    status, out, err = tool("push", "nowhere", "--to", to)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"error: .*\n", err)


def test_without_a_token_or_a_network_a_push_is_one_line(saved, tool, monkeypatch, no_login):
    _, folder = saved
    status, _, err = tool("push", folder, "--to", "me/tiny")
    assert status == 1
    assert re.fullmatch(r"error: push needs a token .*hf auth login.*--dry-run.*\n", err)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_none")
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    api = hub.HfApi
    monkeypatch.setattr(hub, "HfApi", lambda: api(endpoint="http://127.0.0.1:9", token="hf_none"))
    status, _, err = tool("push", folder, "--to", "me/tiny")
    assert status == 1
    assert re.fullmatch(r"error: the hub can't be reached .*--dry-run.*\n", err)


def test_a_refusal_of_the_hub_is_one_line(saved, tool, monkeypatch):
    error = hub.errors.HfHubHTTPError.__new__(hub.errors.HfHubHTTPError)
    Exception.__init__(error, "403 Forbidden: no write access\nmore")
    monkeypatch.setattr(hub.errors.HfHubHTTPError, "__str__", lambda self: self.args[0])
    Hub(monkeypatch, error)
    status, _, err = tool("push", saved[1], "--to", "me/tiny")
    assert status == 1
    assert re.fullmatch(r"error: the hub refuses me/tiny: 403 Forbidden: no write access.*\n", err)


def test_what_is_no_artifact_is_one_line(saved, tool, tmp_path):
    _, folder = saved
    for name, spoil in {
        "damaged": lambda place: (place / FILE).write_bytes(b"no"),
        "pickle": lambda place: (place / "pytorch_model.bin").write_bytes(b"no"),
        "none": lambda place: (place / FILE).unlink(),
        "card": lambda place: (place / CARD).write_text("---\nlicense: [\n---\n"),
    }.items():
        place = tmp_path / name
        shutil.copytree(folder, place)
        spoil(place)
        status, out, err = tool("push", place, "--to", "me/tiny", "--dry-run", "--license", "mit")
        assert (status, out) == (1, ""), name
        assert re.fullmatch(r"error: .*\n", err), err
