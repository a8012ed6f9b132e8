"""docs/reference: every option of conf/ with its type, its default and where it stands."""

from __future__ import annotations

import re

import pytest

from experiment import ROOT
from experiment.config import composed
from experiment.options import groups, scalars
from scripts import reference

PAGE = reference.PAGE.read_text()
LINK = re.compile(r"\]\(([^)#]+)\)")


def rows(section):
    """Return the cells of the tables' rows in a section of the page."""
    _, _, rest = PAGE.partition(f"\n## {section}\n")
    body = rest.partition("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_page_is_the_one_that_the_files_make():
    assert reference.text() == PAGE, "stale: make reference"


def test_every_link_leads_to_a_file():
    for link in LINK.findall(PAGE):
        assert (reference.PAGE.parent / link).exists(), link
    assert str(ROOT) not in PAGE


def test_every_option_without_a_group_has_its_type_and_default():
    found = {row[0]: row for row in rows("Without a group")}
    cfg = composed([])
    assert {option.name for option in scalars()} <= set(map(str, cfg))
    for option in scalars():
        _, kind, default, _ = found[f"`{option.name}`"]
        assert kind.strip("`")
        assert default == f"`{option.default}`"


@pytest.mark.parametrize("group", groups(), ids=lambda group: group.name)
def test_every_member_is_in_the_page(group):
    told = [row[0] for row in rows(f"{group.name}=")]
    for member in group.members:
        assert any(f"[`{member}`]" in cell for cell in told), member


def test_options_have_the_types_of_the_classes_and_the_words_of_docstrings_and_files():
    found = {row[0]: row for row in rows("quant=")}
    assert found["`quant.rank`"][1:3] == ["`int`", "`1024`"]
    assert "30B" in " ".join(found["`quant.rank`"][3:])
    assert found["`quant.anneal`"][1] == "`Literal['linear', 'cosine']`"
    recon = {row[0]: row for row in rows("recon=")}
    name, kind, default, line, remark = recon["`recon.iters`"]
    assert (name, kind, default) == ("`recon.iters`", "`int`", "`5000`")
    assert line == "optimizer steps a unit; 0 leaves every quantizer where it starts"
    assert remark == "FlexRound sec. 4.2"
    sets = {row[0].split("`")[1]: row[2] for row in rows("quant=") if row[0].startswith("[")}
    assert "`recon.iters=20000`" in sets["adaround"]


def test_no_option_of_a_composed_run_is_missing():
    cfg = composed(["quant=lrq", "activation=static_per_tensor"])
    for group in ("quant", "recon", "activation", "ranges", "model"):
        for key in cfg[group]:
            if not str(key).startswith("_"):
                assert f"| `{group}.{key}` |" in PAGE, f"{group}.{key}"
