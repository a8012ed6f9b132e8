"""Commands of the README and of docs/: each composes today, and no run of it is refused."""

from __future__ import annotations

import re
import shlex

import pytest

from experiment import ROOT
from experiment.sweeps.plan import plan

FENCE = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r'^(\w+)="([^"]*)"$')
# adding.md's members are made by its own test; a page of claims has one command many times.
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    if path.stem not in ("adding", "claims")
)
PLUGIN = ("plugins=", "hydra/sweeper=")  # of a package of one's own; of a search, which has no plan
OPEN = ("<", "...")  # of a key that is pressed, and of what a reader puts there


def filled(text, variables):
    """Return text with each $NAME as the block has set it."""
    return re.sub(r"\$(\w+)", lambda found: variables[found[1]], text)


def commands(text, door="python run.py "):
    """Yield the arguments of each command of the door in the blocks of a page."""
    for block in FENCE.findall(text):
        variables = {}
        for line in block.replace("\\\n", " ").splitlines():
            if found := VARIABLE.match(line):
                variables[found[1]] = filled(found[2], variables)
            elif line.startswith(door):
                plain = filled(line.removeprefix(door), variables).partition("&&")[0]
                words = [w for w in shlex.split(plain, comments=True) if w != "-m"]
                aside = (w.startswith((*PLUGIN, "--")) or any(o in w for o in OPEN) for w in words)
                if not any(aside):
                    yield words


def test_commands_are_found_with_their_variables():
    text = 'x\n```bash\nA="m=1"\nB="$A n=2"\npython run.py -m $B \\\n    o=3   # p\n```\n'
    assert list(commands(text)) == [["m=1", "n=2", "o=3"]]
    assert sum(len(list(commands((ROOT / page).read_text()))) for page in PAGES) > 60


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_a_page_runs_today(page):
    for words in commands((ROOT / page).read_text()):
        refused = {run.refused for run in plan(words)} - {None}
        assert not refused, f"{page}: {shlex.join(words)}: {refused}"
