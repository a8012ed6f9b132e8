"""Two states of the source have two names: a run that was cut off goes on with its own code."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from experiment import source_code

if shutil.which("git") is None:
    pytest.skip("no git on the PATH", allow_module_level=True)


def git(root, *words):
    own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *own, "-C", str(root), *words], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a checkout of a small program, in whose place ours is taken to lie."""
    for name in ("experiment/a.py", "flexround/b.py", "tasks/c.py", "conf/c.yaml", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("one\n")
    (tmp_path / ".gitignore").write_text("outputs\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(source_code, "ROOT", tmp_path)
    return tmp_path


def forget():
    """Forget what was found of the code, as a new process would."""
    source_code.commit.cache_clear()
    source_code.digest.cache_clear()


@pytest.fixture(autouse=True)
def fresh():
    """Leave nothing of these programs to other tests."""
    yield
    forget()


def state():
    """Return (commit, digest) as a new process would find them."""
    forget()
    return source_code.commit(), source_code.digest()


def test_every_state_of_a_working_tree_has_its_own_name(checkout):
    states = [state()]
    assert "+" not in states[0][0]
    for text in ("two\n", "three\n", "threX\n"):
        (checkout / "flexround" / "b.py").write_text(text)
        states.append(state())
        assert states[-1][0].startswith(states[0][0] + "+")
    (checkout / "tasks" / "new.py").write_text("a method of one's own\n")
    states.append(state())
    (checkout / "tasks" / "new.py").write_text("a method of one's owN\n")
    states.append(state())
    for found in zip(*states, strict=True):
        assert len(set(found)) == len(states)
    git(checkout, "checkout", "-q", ".")
    (checkout / "tasks" / "new.py").unlink()
    assert state() == states[0]


def test_what_computes_nothing_has_no_part_in_it(checkout):
    before = state()
    (checkout / "README.md").write_text("two\n")
    (checkout / "outputs").mkdir()
    (checkout / "outputs" / "x.py").write_text("two\n")
    assert state() == before


def test_configurations_are_told_by_the_commit_alone(checkout):
    # A run has its settings in its own name.
    before = state()
    (checkout / "conf" / "c.yaml").write_text("two\n")
    assert state()[0] != before[0]
    assert state()[1] == before[1]


def test_without_git_the_digest_stands_alone(checkout):
    shutil.rmtree(checkout / ".git")
    commit, digest = state()
    assert commit is None
    (checkout / "tasks" / "c.py").write_text("two\n")
    assert state()[1] != digest


def test_a_package_of_ones_own_counts(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    method = tmp_path / "mine" / "method.py"
    method.write_text("one\n")
    (tmp_path / "single.py").write_text("one\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = OmegaConf.create(
        {"quant": {"_target_": "mine.method.A", "inner": [{"_target_": "single.B"}]}, "bits": 4}
    )
    found = set()
    for path in (method, method, tmp_path / "single.py"):
        forget()
        found.add(source_code.code_of(cfg))
        path.write_text(path.read_text() + "more\n")
    assert len(found) == 3
    assert "mine" not in sys.modules  # nothing is run to look at it
    forget()
    absent = OmegaConf.create({"quant": {"_target_": "no.such.package"}})
    assert source_code.code_of(absent) == source_code.code_of(OmegaConf.create({}))


def test_a_package_without_init_is_code_as_well(tmp_path, monkeypatch):
    """Python imports such a folder, and what it computes changes with its files."""
    file = tmp_path / "plain_folder" / "rows.py"
    file.parent.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    cfg = OmegaConf.create({"granularity": {"_target_": "plain_folder.rows.PerRows"}})
    found = set()
    for text in ("one\n", "two\n"):
        file.write_text(text)
        forget()
        found.add(source_code.code_of(cfg))
    assert len(found) == 2
