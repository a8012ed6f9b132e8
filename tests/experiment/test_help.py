"""Help of every command: groups and options from the files of conf/, examples, completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import artifact
import finetune
import run
from experiment import ROOT
from experiment import __main__ as experiment
from experiment.command_line import command_line
from experiment.options import CONF, OF_FINETUNING, first_sentence, groups, options_in, scalars
from flexround.utils import arguments
from results import __main__ as results
from results.command_lines import COMMANDS


def asked(monkeypatch, capsys, door, *words):
    """Return (status or line, stdout) of a door that Hydra composes."""
    monkeypatch.setattr(sys, "argv", [door, *words])
    main, name = (run.main, "run.py") if door == "run.py" else (finetune.main, "finetune.py")
    try:
        command_line(main, name=name)
        status = 0
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr().out


def members_in(out, name):
    """Return the members below a group's line in a help text, whose words are elsewhere too."""
    (block,) = re.findall(rf"^  {name} .*\n((?: {{6}}.+\n)+)", out, re.MULTILINE)
    lines = [line[6:] for line in block.splitlines() if line[6] != " "]  # the group's own go on
    return " ".join(lines).split(", ")


@pytest.mark.parametrize("door", ["run.py", "finetune.py"])
def test_help_lists_every_group_with_a_line_and_every_member(monkeypatch, capsys, door):
    status, out = asked(monkeypatch, capsys, door, "--help")
    assert status == 0

    def has(name):
        top = name.split("/")[0].split(".")[0]
        return top != "recipe" if door == "run.py" else top in OF_FINETUNING

    files = [path.relative_to(CONF).parts for path in CONF.rglob("*.yaml")]
    folders = {parts[0] for parts in files if len(parts) > 1} - {"tuned", "search"}
    assert folders == {found.name.split("/")[0] for found in groups()}, "one has no line"
    for found in groups():
        assert found.line, f"{found.name} has no line"
        if not has(found.name):
            assert f"\n  {found.name} " not in out
            continue
        assert members_in(out, found.name) == list(found.members)
    for option in scalars():
        assert (f"  {option.name} [" in out) == has(option.name)
    assert (
        "python finetune.py model=" in out if door == "finetune.py" else "python run.py -m" in out
    )


@pytest.mark.parametrize("group", groups(), ids=lambda group: group.name)
def test_every_member_says_what_it_is_in_its_first_comment(monkeypatch, capsys, group):
    status, out = asked(monkeypatch, capsys, "run.py", "--help", group.name)
    assert status == 0
    told = " ".join(out.split())
    for name, path in group.members.items():
        line = first_sentence(path)
        assert len(line) > 5, f"{path} has no comment that says what it is"
        assert " ".join(line.split()) in told
        assert name in out


def test_an_option_and_an_override_are_explained_too(monkeypatch, capsys):
    assert "2 to 8" in asked(monkeypatch, capsys, "run.py", "-h", "bits")[1]
    assert "signround" in asked(monkeypatch, capsys, "run.py", "quant=rtn", "--help")[1]
    line, _ = asked(monkeypatch, capsys, "run.py", "--help", "modl")
    assert "did you mean model?" in str(line)


def test_every_option_without_a_group_has_a_line():
    assert [option.name for option in scalars() if not option.line] == []


def test_options_are_read_with_their_maps_and_comments():
    text = "a: 1   # first\nb:\n  # not this\n  c: [x, y]\n  d:\n    e: null  # deep\nf: ${a}\n"
    found = [(option.name, option.default, option.line) for option in options_in(text)]
    assert found == [
        ("a", "1", "first"), ("b.c", "[x, y]", ""), ("b.d.e", "null", "deep"), ("f", "${a}", ""),
    ]  # fmt: skip


def test_a_first_sentence_ends_where_the_next_begins(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("# @package _global_\n# Of sec. 4.3 (arXiv 1.2), as\n# there. And more\na: 1\n")
    assert first_sentence(path) == "Of sec. 4.3 (arXiv 1.2), as there"
    path.write_text("a: 1\n# later\n")
    assert first_sentence(path) == ""


HELPS = [
    (results.main, [name] if name else []) for name in COMMANDS if name not in ("TABLE", "rekey")
]
HELPS += [(results.main, ["table02"]), (experiment.main, []), (artifact.main, [])]
HELPS += [(experiment.main, [name]) for name in experiment.COMMANDS]
HELPS += [(artifact.main, [name]) for name in artifact.COMMANDS]


@pytest.mark.parametrize(
    ("main", "words"), HELPS, ids=lambda v: " ".join(v) if isinstance(v, list) else v.__module__
)
def test_every_command_has_a_purpose_described_arguments_and_an_example(
    monkeypatch, capsys, main, words
):
    parsers = []
    real = arguments.ArgumentParser.print_help

    def seen(self, file=None):
        parsers.append(self)
        real(self, file)

    monkeypatch.setattr(arguments.ArgumentParser, "print_help", seen)
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    (parser,) = parsers
    assert parser.description, "no purpose"
    undescribed = [action.dest for action in parser._actions if not action.help]
    assert not undescribed
    assert "example" in out
    assert "\n  python " in out


def test_the_shell_completes_groups_members_and_options():
    def completed(line):
        env = os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))}
        command = [sys.executable, "run.py", "-sc", "query=bash"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
        return done.stdout.split()

    assert completed("run.py quant=flexround_") == [
        "quant=flexround_fixed_s1", "quant=flexround_lwc", "quant=flexround_no_s3_s4",
    ]  # fmt: skip
    assert "recon.iters=" in completed("run.py quant=adaround recon.it")
    command = [sys.executable, "run.py", "-sc", "install=bash"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "hydra_bash_completion" in done.stdout
