"""Tables as Markdown, LaTeX and CSV, read by other programs than the ones that made them."""

from __future__ import annotations

import io
import shutil
import subprocess

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from results.tables.formats import latex, markdown
from results.tables.leaderboard import leaderboard, render
from results.tables.paper_comparison import as_text, compare_with_paper, frame
from tests.results.records.test_store import record
from tests.results.tables.test_leaderboard import runs
from tests.results.tables.test_paper_comparison import run

HARD = r"a|b _target_ mobilenet_v2 *x* `c` <b> [d](e) & \ 100 % $ # ~ ^ {f}"
TEXTS = st.text(st.sampled_from("ab_v2 |*`<>[]()&;\\!#~-+.:%$^{}\"'/"), min_size=1, max_size=12)


def rendered(text):
    """Return the cells of the first Markdown table as plain text, row by row."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert tokens[0].type == "table_open"
    rows = []
    for token in tokens:
        if token.type == "table_close":
            return rows
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline":
            assert all(part.type in ("text", "text_special") for part in token.children or [])
            rows[-1].append("".join(part.content for part in token.children or []))
    raise AssertionError("the table does not end")


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_markdown_shows_every_text_as_it_is(rows):
    table = pd.DataFrame(rows, columns=["a|_b_", "c"])
    plain = [["a|_b_", "c"], *([" ".join(cell.split()) for cell in row] for row in rows)]
    assert rendered(markdown(table)) == plain


def test_the_leaderboard_and_the_join_are_tables_in_markdown():
    frame_ = leaderboard([record(settings={"bits": 4, "granularity": {"_target_": "a"}}), record(
        "b", settings={"bits": 4, "granularity": {"_target_": "b|c"}})])  # fmt: skip
    head, *rows = rendered(render(frame_, "markdown"))
    assert head == ["model", "quant", "granularity._target_", "FP", "W4"]
    assert [row[2] for row in rows] == ["a", "b|c"]
    joined = frame(compare_with_paper("table02", [run("flexround", 70.0)]))
    assert rendered(markdown(as_text(joined))) == [
        list(as_text(joined).columns), *as_text(joined).astype(str).to_numpy().tolist(),
    ]  # fmt: skip


def test_csv_reads_back_to_the_same_frame_with_its_types():
    cells = leaderboard(runs())
    again = pd.read_csv(io.StringIO(render(cells, "csv")))
    pd.testing.assert_frame_equal(again, cells)
    assert (again["median"].iloc[0], again["mean"].iloc[0]) == (92.0, 92.0)


def test_latex_escapes_what_it_would_read_as_commands():
    text = latex(pd.DataFrame({"50 % & more_": [HARD]}))
    assert r"50 \% \& more\_" in text
    for escaped in (r"\_target\_", r"\&", r"\$", r"\#", r"\%", r"\{f\}", r"\textbackslash"):
        assert escaped in text
    assert r"91.00 $\pm$ 2.00" in latex(pd.DataFrame({"a": ["91.00 \N{PLUS-MINUS SIGN} 2.00"]}))


@pytest.mark.slow
def test_latex_compiles(tmp_path):
    compilers = [name for name in ("tectonic", "pdflatex") if shutil.which(name)]
    if not compilers:
        pytest.skip("neither tectonic nor pdflatex; Debian has it in texlive-latex-recommended")
    tables = [
        render(leaderboard(runs()), "latex"),
        latex(as_text(frame(compare_with_paper("table02", [run("flexround", 70.0)])))),
        latex(pd.DataFrame({"50 % & more_": [HARD]})),
    ]
    body = "\n\n".join(rf"\resizebox{{!}}{{5cm}}{{{table}}}" for table in tables)
    document = rf"""\documentclass{{article}}
\usepackage{{booktabs}}
\usepackage{{graphicx}}
\begin{{document}}
{body}
\end{{document}}
"""
    (tmp_path / "tables.tex").write_text(document)
    options = ["-interaction=nonstopmode", "-halt-on-error"] if compilers[0] == "pdflatex" else []
    command = [compilers[0], *options, "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 1000
