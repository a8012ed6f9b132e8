"""Only our classes are built, a user's own once allowed, and no code of others is asked for."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiment import ROOT
from experiment.artifacts.stated_overrides import HERE, check_given, composable, shareable
from experiment.build import _validate_node, build, check_plugins, validate
from experiment.config import composed
from experiment.identity import identity, run_id
from experiment.sweeps.plan import report
from results.records.store import Store
from tests.conftest import TINY

NOT_OURS = {
    "os": "os.system",
    "subprocess": "subprocess.getoutput",
    "imported": "flexround.utils.atomic_files.os.system",
    "an import of ours": "flexround.utils.atomic_files.Path",
    "a function of ours": "flexround.utils.atomic_files.write_whole",
    "a name that begins alike": "flexround_evil.X",
    "the application's": "experiment.artifacts.save.save",
    "no name": "flexround.grid.",
}


def described(target, **more):
    return OmegaConf.create({"quant": {"_target_": target, **more}})


@pytest.mark.parametrize("case", NOT_OURS)
def test_what_is_not_ours_is_neither_imported_nor_called(case, tmp_path, monkeypatch):
    (tmp_path / "flexround_evil.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = described(NOT_OURS[case])
    for call in (lambda: validate(cfg), lambda: build(cfg.quant)):
        with pytest.raises(ValueError, match=r"\Aquant\._target_=[^\n]+\Z"):
            call()


def test_nor_where_it_is_nested(tmp_path):
    inner = {"_target_": "torch.utils.collect_env.run", "command": f"touch {tmp_path}/ran"}
    for node in ({"corpus": inner}, {"all": [{"deep": [inner]}]}):
        cfg = described("tasks.language.calibration_data.Stream", **node)
        for call in (lambda cfg=cfg: validate(cfg), lambda cfg=cfg: build(cfg.quant)):
            with pytest.raises(ValueError, match=r"_target_=torch\.utils.* is none of flexround"):
                call()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["_args_", "_recursive_", "_convert_"])
def test_hydras_own_words_are_no_options(key):
    with pytest.raises(ValueError, match=rf"quant\.{key}: there is no such option"):
        build(described("flexround.grid.PerChannel", **{key: ["x"]}).quant)


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """Make a package with a method of its own, and the configuration that names it."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("from my_package.nearest import Nearest\n")
    (tmp_path / "my_package" / "nearest.py").write_text(
        "from flexround.quantizers.rtn import RTN\n\n\nclass Nearest(RTN):\n    pass\n"
    )
    (tmp_path / "conf" / "quant").mkdir(parents=True)
    (tmp_path / "conf" / "quant" / "nearest.yaml").write_text(
        "# @package _global_\ndefaults: [rtn]\nquant: {_target_: my_package.Nearest}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield f"hydra.searchpath=[file://{tmp_path}/conf]"
    for name in [n for n in sys.modules if n.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_a_method_in_a_package_of_ones_own_runs_once_it_is_allowed(
    cli, own_package, results_dir, cache_dir
):
    args = (*TINY, "quant=nearest", "num_samples=64", own_package)
    refused = cli(*args)
    assert refused.status == 1
    assert "give plugins=[my_package] on the command line" in refused.err
    assert "my_package" not in sys.modules
    allowed = cli(*args, "plugins=[my_package]")
    assert allowed.status == 0, allowed.err
    (record,) = Store(results_dir).load()
    assert f"already recorded as {record.run_id}" in cli(*record.overrides).err
    told = report(
        [*args, "plugins=[my_package]", f"results_dir={results_dir}", f"cache_dir={cache_dir}"]
    )
    assert told.startswith("1 runs: 1 done\n")


def test_a_run_is_named_by_the_whole_path_of_a_plugins_class():
    """Another class is another's, whatever its name: of another package, or one of ours."""
    paths = ("one.Nearest", "one.moved.Nearest", "two.Nearest", "two.RTN")
    for path in paths:
        cfg = composed(["quant=rtn", f"quant._target_={path}", "plugins=[one,two]"])
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        assert identity(cfg)["quant"]["_target_"] == path


def test_plugins_are_no_part_of_a_runs_name():
    plain, allowed = composed([]), composed(["plugins=[my_package]"])
    for cfg in (plain, allowed):
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
    assert run_id(identity(plain)) == run_id(identity(allowed))


def test_plugins_stand_on_the_command_line_alone():
    check_plugins([], [])
    check_plugins(["a.b"], ["bits=3", "plugins=[a.b]"])
    with pytest.raises(ValueError, match="stands in a file"):
        check_plugins(["a"], ["bits=3"])
    with pytest.raises(ValueError, match="give packages by name"):
        check_plugins(["a/b"], ["plugins=[a/b]"])
    with pytest.raises(ValueError, match="a file sets no option but what decides a result"):
        composable(["plugins=[os]"], [])


def test_what_is_given_stands_for_what_a_file_states():
    stated = ["task=text", "data_dir=/there", "bits=3", "checkpoint=/weights", "model.source=a/b"]
    with pytest.raises(ValueError, match="a file names no place; give data_dir="):
        composable(stated, [])
    assert composable(stated, ["data_dir=here", "bits=4"]) == ["task=text"]


def test_an_artifact_states_no_path_of_its_machine():
    own = ["data_dir=/home/me/x", "checkpoint='~/w.pth'", "model.source=org/name", "bits=3"]
    told = [f"data_dir={HERE}", f"checkpoint={HERE}", "model.source=org/name", "bits=3"]
    assert shareable(own) == told
    own, told = ["hydra.searchpath=[file:///home/me/conf]"], [f"hydra.searchpath={HERE}"]
    assert shareable(own) == told
    check_given(own, told)


SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "option", ["checkpoint", "data_dir", "model.name", "act_bits", "checkpoints_dir"]
)
def test_the_environment_enters_no_option_that_a_record_keeps(
    cli, results_dir, monkeypatch, option
):
    monkeypatch.setenv("FLEXROUND_SECRET", SECRET)
    others = [text for text in TINY if not text.startswith(f"{option}=")]
    outcome = cli(*others, f"{option}=${{oc.env:FLEXROUND_SECRET}}")
    assert outcome.status == 1
    assert f"error: {option} is made from an environment variable" in outcome.err
    assert SECRET not in outcome.err
    assert not list(results_dir.glob("*.json"))


def test_it_may_name_folders_of_which_nothing_is_kept(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXROUND_SCRATCH", str(tmp_path / SECRET))
    place = "results_dir=${oc.env:FLEXROUND_SCRATCH}/results"
    outcome = cli(*TINY, "quant=rtn", "num_samples=64", "save=true", place)
    assert outcome.status == 0, outcome.err
    files = [p for p in (tmp_path / SECRET / "results").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} >= {".json", ".safetensors", ".md"}
    assert not [p for p in files if SECRET.encode() in p.read_bytes()]


LOADERS = ("from_pretrained", "from_config", "get_config_dict", "load_dataset")


def sources():
    for room in ("experiment", "tasks", "flexround", "results", "hydra_plugins"):
        yield from sorted((ROOT / room).rglob("*.py"))
    yield from sorted(ROOT.glob("*.py"))


def calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            yield name, {k.arg: getattr(k.value, "value", k) for k in node.keywords}


def test_no_code_that_comes_with_a_network_is_asked_for():
    found = [(p, n, given) for p in sources() for n, given in calls(p) if n in LOADERS]
    assert len(found) >= 9, "the names of transformers' functions have changed"
    for path, name, given in found:
        assert given.get("trust_remote_code", "absent") is False, f"{path}: {name}"


def test_no_pickle_is_opened_but_as_tensors_alone():
    for path in sources():
        for name, given in calls(path):
            if name == "load" and "map_location" in given:
                assert given["weights_only"] is True, path
        text = path.read_text()
        assert not any(f"pickle.{word}(" in text for word in ("load", "loads", "Unpickler")), path


def test_a_record_has_interpolations_as_they_were_typed(cli, results_dir):
    typed = "act_init_samples=${num_samples}"
    outcome = cli(*TINY, "quant=rtn", "num_samples=32", "activation=static_per_tensor", typed)
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    assert typed in record.overrides
    assert record.settings["activation"]["init_samples"] == 32


STATED = ["task=text", "data_dir=PATH", "bits=3", "quant._target_=my_package.Mine"]


@pytest.mark.parametrize(
    "given",
    ["task=c4", "task.eval_batch_size=2", "protocol.window=64", "preprocessing.size=224",
     "device=cuda:1", "plugins=[my_package]", "data_dir=here", "cache_dir=here",
     "task.corpus.local=here", "checkpoint=here", "quant._target_=my_package.Mine"],
)  # fmt: skip
def test_how_and_where_an_artifact_is_measured_can_be_given(given):
    check_given([given], STATED)


@pytest.mark.parametrize(
    "given",
    ["bits=4", "quant=gptq", "quant.damp=0.1", "granularity=per_group", "recon.iters=9",
     "threads=1", "model=tiny_gpt2", "save=true", "seed=1", "+bits=4", "activation=null", "~quant"],
)  # fmt: skip
def test_how_an_artifact_was_made_is_not_chosen_again(given):
    with pytest.raises(ValueError, match="would change nothing of what is made already") as error:
        check_given(["data_dir=here", given], STATED)
    assert str(error.value).startswith(f"{given} ")
    assert "the options of task, protocol, preprocessing, device, plugins" in str(error.value)


def test_types_that_are_not_there_at_run_time_are_told():
    """Imports for type checkers alone leave an annotation that nothing can be checked against."""

    class Own:
        def __init__(self, weight: Nowhere) -> None:  # noqa: F821
            self.weight = weight

    with pytest.raises(ValueError, match=r"Own: name 'Nowhere' is not defined.*TYPE_CHECKING"):
        _validate_node("quant", OmegaConf.create({"weight": 1}), Own)


def test_a_list_of_yaml_is_a_tuple_where_one_is_taken():
    class Own:
        def __init__(self, betas: tuple[float, float]) -> None:
            self.betas = betas

    _validate_node("quant", OmegaConf.create({"betas": [0.9, 0.95]}), Own)
    with pytest.raises(ValueError, match=r"quant\.betas"):
        _validate_node("quant", OmegaConf.create({"betas": [0.9, "x"]}), Own)


def test_a_method_without_its_partial_is_told_so(cli, own_package, tmp_path):
    (tmp_path / "conf" / "quant" / "nearest.yaml").write_text(
        "# @package _global_\nquant: {_target_: my_package.Nearest}\nidle: {quant: []}\n"
    )
    told = cli(*TINY, "quant=nearest", "num_samples=64", own_package, "plugins=[my_package]")
    assert told.status == 1
    assert "says `_partial_: true`" in told.err
