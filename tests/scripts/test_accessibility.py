"""The check of pages: each is looked at in both colours and widths, and what is found is told."""

from __future__ import annotations

import pytest

from scripts.accessibility import main
from tests.results.page.test_page import needs_chromium

# Stands for axe-core: tells of pictures without a text, and under what the page is shown.
AXE = """var axe = {run: async (root, {runOnly}) => ({violations: [
  {id: runOnly.values[0], help: matchMedia("(prefers-color-scheme: dark)").matches ? "D" : "L",
   nodes: [{target: [String(innerWidth), location.hash]}]},
  ...[...root.querySelectorAll("img:not([alt])")].map((one) =>
    ({id: "image-alt", help: "needs a text", nodes: [{target: [one.id]}]}))]})}"""
PAGE = """<!doctype html><html><head>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'"></head>
<body><script>const LEVELS = "a name that the check has too";</script>
<img id="bare"><img id="told" alt="told"></body></html>"""


@pytest.fixture
def files(tmp_path):
    axe, page = tmp_path / "axe.js", tmp_path / "page.html"
    axe.write_text(AXE)
    page.write_text(PAGE)
    return axe, page


@pytest.mark.slow
@needs_chromium
def test_a_page_is_looked_at_in_both_colours_and_widths(files, capsys):
    axe, page = files
    assert main([str(axe), f"{page}#run=a"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "wcag2a" in line] == [
        f"  wcag2a: {colour}: {width} #run=a" for width in (1280, 390) for colour in "LD"
    ]
    assert lines.count("  image-alt: needs a text: bare") == 4
    assert sorted(path.name for path in page.parent.iterdir()) == ["axe.js", "page.html"]


@needs_chromium
def test_a_file_that_is_not_there_is_one_line(files, capsys):
    axe, page = files
    with pytest.raises(SystemExit):
        main([str(axe), str(page.with_name("other.html"))])
    assert "other.html: there is no such file" in capsys.readouterr().err.splitlines()[-1]
