"""The site of docs/: it builds without a warning, loads nothing from elsewhere, and is current."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiment import ROOT
from scripts.diagrams import DIAGRAMS, FIGURES, INK, draw
from scripts.site_hooks import on_page_markdown

DOCS = ROOT / "docs"
# A page may lead elsewhere, and loads nothing from there.
LOADED = re.compile(
    r"<(?:script|img|iframe|source|embed)[^>]*(?:src|srcset)=\"(?:https?:)?//[^\"]*"
)
STYLED = re.compile(
    r"<link[^>]*rel=\"(?:stylesheet|preload|icon)\"[^>]*href=\"(?:https?:)?//[^\"]*"
)


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {page.with_suffix(".md").name for page in pages} >= {
        page.name for page in DOCS.glob("*.md")
    }
    for page in pages:
        text = page.read_text()
        assert not LOADED.findall(text), page.name
        assert not STYLED.findall(text), page.name
        assert "](" not in re.sub(r"<code.*?</code>", "", text, flags=re.DOTALL), page.name


def test_links_within_the_repository_are_texts_on_the_site():
    text = "see [`store.py`](../results/records/store.py), [speed](speed.md)"
    assert on_page_markdown(text) == "see `store.py`, [speed](speed.md)"


def test_each_page_can_be_reached_and_each_link_leads_to_a_file():
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in (*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        assert page.parent == ROOT or re.search(rf"\b{page.name}\b", listed), page.name
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_diagrams_are_those_that_the_script_draws(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra plots is not installed")
    drawn = draw(tmp_path)
    assert len(drawn) == len(DIAGRAMS) * len(INK)
    for path in drawn:
        kept = FIGURES / path.name
        # The outlines of letters are another release's of matplotlib; boxes and arrows are ours.
        assert _shapes(kept) == _shapes(path), f"run `make figures`: {path.name}"
        assert kept.stat().st_size < 200_000


def _shapes(path: Path) -> list[str]:
    return re.findall(r'id="(patch_\d+)"|fill: (#\w+)', path.read_text())


def test_each_picture_has_a_text_and_a_dark_twin():
    for page in (*DOCS.glob("*.md"), ROOT / "README.md"):
        for dark, text, light in re.findall(
            r'srcset="([^"]+)">\s*<img alt="([^"]*)" src="([^"]+)"', page.read_text()
        ):
            assert len(text) > 20, page.name
            assert dark == light.replace("-light", "-dark")
            assert (page.parent / dark).exists(), dark
            assert (page.parent / light).exists(), light


def test_the_messages_of_troubleshooting_are_those_that_are_printed():
    """The fixed words of each quoted message stand in the code, in order."""
    source = " ".join(
        path.read_text()
        for folder in ("experiment", "flexround", "tasks", "results")
        for path in (ROOT / folder).rglob("*.py")
    )
    words = re.sub(r'"\s*f?"', "", re.sub(r"\{[^{}]*\}|%[.\d]*[sdf%]", "...", source))
    headings = re.findall(r"^### (.*)$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [message for heading in headings for message in re.findall(r"`([^`]+)`", heading)]
    assert len(quoted) >= 8
    for message in quoted:
        parts = [part.strip(" :;,=%") for part in message.split("...")]
        for part in parts:
            assert part in words or part == "device=cuda", f"{message}: {part}"
