"""The page: the leaderboard's numbers, the runs behind them, and nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
import shutil
import struct
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest

from benchmarks.board import records as synthetic
from results.__main__ import main
from results.page.page import page
from results.page.svg_chart import Series, Value, chart
from results.records.store import Store
from results.tables.leaderboard import leaderboard
from tests.results.records.test_store import record
from tests.results.tables.test_leaderboard import runs

EVIL = "<script>document.title='run'</script>\"'><img src=x onerror=\"document.title='run'\">&amp;"


class Reader(HTMLParser):
    """Keeps what a test asks of a page.

    Attributes:
        tags: every tag with its attributes.
        rows: the shown cells of every row of a leaderboard, (text, number, whether hidden).
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.scripts, self._tables = [], [], [], []
        self._in = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Open tag."""
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "tr" and "data-runs" in attrs:
            self.rows.append({"runs": int(attrs["data-runs"]), "shown": "hidden" not in attrs})
            self.rows[-1] |= {"texts": [], "numbers": []}
            self._in = []
        elif tag == "script":
            self.scripts.append("")
            self._in = ["script"]
        elif tag == "table":
            self._tables.append(attrs["class"])
        elif tag in ("th", "td") and self.rows and self._tables[-1:] == ["board"]:
            if attrs.get("class") == "pick":
                return
            self._in = [tag]
            self.rows[-1]["texts"].append("")
            self.rows[-1]["numbers"].append(attrs.get("data-n"))

    def handle_endtag(self, tag):
        """Close tag."""
        if tag == "table":
            self._tables.pop()
        if tag in self._in:
            self._in = []

    def handle_data(self, data):
        """Add to the open cell or script."""
        if self._in == ["script"]:
            self.scripts[-1] += data
        elif self._in:
            self.rows[-1]["texts"][-1] += data

    @property
    def data(self):
        """The runs, as the script gets them."""
        return json.loads(self.scripts[0])

    @property
    def units(self):
        """The runs' units, as the script gets them."""
        return json.loads(self.scripts[1])

    @property
    def shown(self):
        """The texts of the rows that are not hidden."""
        return [row["texts"] for row in self.rows if row["shown"]]


def test_the_numbers_are_those_of_the_leaderboard():
    frame = leaderboard(runs())
    rows = Reader(page(runs(), [], "results")).rows
    assert len(rows) == len(frame)
    for row, cell in zip(rows, frame.itertuples(), strict=True):
        model, quant, width, mean, delta, fp, n, failed = row["texts"]
        assert (model, quant, width) == (cell.model, cell.quant, f"W{cell.bits}")
        assert (n, failed) == (str(cell.n), str(cell.failed))
        for number, value in zip(
            row["numbers"][3:6], (cell.mean, cell.delta, cell.fp), strict=True
        ):
            assert number is None if pd.isna(value) else float(number) == value
        assert fp == ("-" if pd.isna(cell.fp) else f"{cell.fp:.2f}")
        assert delta == ("-" if pd.isna(cell.delta) else f"{cell.delta:+.2f}")
        std = f" \N{PLUS-MINUS SIGN} {cell.std:.2f}" if cell.n > 1 else ""
        assert mean == (f"{cell.mean:.2f}{std}" if cell.n else "failed")


def test_every_row_has_its_runs_and_their_facts():
    rows = runs()
    rows.append(
        record("g", quant="gptq", overrides=["quant=gptq", "mean=[1, 2]"], versions={"torch": "2"})
    )
    read = Reader(page(rows, [], "results"))
    found = {run[0]: run for members in read.data["runs"] for run in members}
    assert set(found) == {r.run_id for r in rows}
    assert [len(read.data["runs"][row["runs"]]) for row in read.rows] == [3, 1, 1, 1]
    assert found["g"][1:5] == ["ok", 0, "97", "0.0"]
    assert read.data["made"][found["g"][6]] == ["unknown", "torch 2", "unknown", "unknown"]
    assert shlex.split(found["g"][8]) == ["python", "run.py", "quant=gptq", "mean=[1, 2]"]
    assert found["x"][1] == "failed"
    assert found["x"][7] == "it broke"
    assert found["x"][8] is None


def test_the_command_of_a_record():
    assert record(overrides=["a=b c"]).command() == "python run.py 'a=b c'"
    assert record(overrides=[]).command("rerun=true") == "python run.py rerun=true"
    assert record().command() is None


def test_settings_that_tell_rows_apart_are_columns_of_their_task_alone():
    rows = [record(f"s{s}", settings={"bits": 4, "symmetric": s}) for s in (True, False)]
    rows.append(record("o", task="other"))
    texts = [row["texts"] for row in Reader(page(rows, [], "results")).rows]
    assert [row[2] for row in texts] == ["True", "False", "W4"]


def test_a_heading_names_the_metric_where_the_first_row_has_none():
    failed = record("x", status="failed", bits=2, settings={"bits": 2, "seed": 0}, metric=None)
    rows = [failed, record("a", started="2"), record("y", status="failed", task="t", metric=None)]
    heads = re.findall(r"<h2 id=\"t\d\">(\w+) <small>(\w+),", page(rows, [], "results"))
    assert dict(heads) == {"digits": "top1", "t": "value"}


def test_what_failed_with_other_settings_is_told_below():
    stray = record("stray", status="failed", settings={"bits": 4, "seed": 0, "num_samples": 5000})
    text = page([record("a"), stray], [], "../results")
    assert "1 failed in no row" in text
    assert '<a href="../results/stray.json">stray</a>' in text
    assert "failed in no row" not in page([record("a")], [], "results")


def test_nothing_of_a_record_becomes_part_of_the_page():
    evil = record(
        "evil", model=EVIL, quant=EVIL, task=EVIL, metric=EVIL, metrics={EVIL: 97.0},
        overrides=[EVIL], commit=EVIL, device=EVIL, versions={EVIL: EVIL}, started=EVIL,
    )  # fmt: skip
    failed = record("failed", status="failed", error=EVIL, seed=1)
    stray = record("stray", status="failed", error=EVIL, settings={"bits": 4, "lr": 1})
    read = Reader(page([evil, record("a"), failed, stray], [], "results"))
    plain = Reader(page([record("a")], [], "results"))
    more = {tag for tag, _ in read.tags} - {tag for tag, _ in plain.tags}
    assert more == {"details", "summary", "a"}
    assert [tag for tag, _ in read.tags].count("script") == 3
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    assert read.rows[0]["texts"][:2] == [EVIL, EVIL]
    assert shlex.split(read.data["runs"][0][0][8])[2] == EVIL


def test_the_page_needs_nothing_else_and_lets_nothing_else_run():
    text = page(runs(), [], "results")
    read = Reader(text)
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in read.tags}
    addresses = [a[name] for _, a in read.tags for name in ("src", "href") if name in a]
    assert not any(re.match(r"(\w+:)?//", address) for address in addresses)
    assert "url(" not in text
    assert "@import" not in text
    digest = base64.b64encode(hashlib.sha256(read.scripts[2].encode()).digest()).decode()
    (policy,) = (a["content"] for _, a in read.tags if "http-equiv" in a)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_controls_have_labels_and_tables_headers():
    text = page(runs(), [], "results")
    read = Reader(text)
    heads = [a for tag, a in read.tags if tag == "th"]
    assert {a["scope"] for a in heads} == {"col", "row"}
    assert text.count("<label") == 5
    names = [a["name"] for tag, a in read.tags if tag in ("select", "input")]
    assert names == ["text", "task", "model", "quant", "width"]
    assert all("aria-label" in a or "aria-hidden" in a for tag, a in read.tags if tag == "svg")


def test_the_page_is_a_function_of_the_records():
    assert page(runs(), [], "results") == page(runs(), [], "results")


def test_a_plot_has_a_mark_for_every_value():
    read = Reader(page([*runs(), record("b", model="broken", status="failed")], [], "results"))
    assert [a["data-model"] for tag, a in read.tags if tag == "figure"] == ["resnet18"]
    marks = [a for tag, a in read.tags if tag == "g" and "transform" in a]
    assert len(marks) == 2
    assert len([a for tag, a in read.tags if a.get("class") == "bar"]) == 1
    assert len([a for tag, a in read.tags if tag == "polyline"]) == 2


def placed(*means, fp=None, higher=True):
    values = [Value(bits, mean, 0.0, "") for bits, mean in enumerate(means, 2)]
    return chart("m", "", [Series("q", "q", 0, 0, values)], fp, higher)


def test_a_plot_keeps_the_order_of_its_values():
    drawn = placed(10.0, 90.0, 50.0, fp=95.0)
    low, high, middle = (mark.y for mark in drawn.lines[0].marks)
    assert 0 < drawn.fp < high < middle < low < 230
    assert [text for _, text in drawn.bits] == ["W2", "W3", "W4"]
    assert [text for _, text in drawn.scale.ticks] == ["0", "25", "50", "75", "100"]


@pytest.mark.parametrize("means", [(97.0,), (97.0, 97.00000000000001), (0.0, 0.0), (-0.2, 0.0)])
def test_values_that_hardly_differ_have_a_plot(means):
    drawn = placed(*means, fp=means[0])
    assert len({text for _, text in drawn.scale.ticks}) == len(drawn.scale.ticks) >= 2
    assert all(0 < mark.y < 230 for mark in drawn.lines[0].marks)


def test_perplexities_of_many_sizes_get_a_logarithmic_axis():
    drawn = placed(2e6, 994.0, 48.6, 24.0, fp=23.6, higher=False)
    assert drawn.scale.log
    assert [text for _, text in drawn.scale.ticks] == ["100", "1000", "10000", "1e5", "1e6"]
    assert [t for _, t in placed(24.0, 1500.0, higher=False).scale.ticks][:2] == ["20", "50"]
    assert not placed(30.0, 24.0, higher=False).scale.log
    assert not placed(0.1, 97.0).scale.log


def test_ten_thousand_runs_stay_below_ten_megabytes():
    number = 600
    assert len(page(list(synthetic(number)), [], "results")) / number < 1000


def test_the_command_writes_the_page_and_says_where(tmp_path, capsys):
    store = Store(tmp_path / "my results")
    store.root.mkdir()
    for row in runs():
        store.write(row)
    out = tmp_path / "pages" / "board.html"
    args = ["html", "--results-dir", str(store.root), "--out", str(out)]
    assert main([*args, "--where", "quant=flexround"]) == 0
    assert capsys.readouterr().out == f"4 runs: {out}\n"
    read = Reader(out.read_text())
    assert {row["texts"][1] for row in read.rows} == {"flexround"}
    assert read.data["folder"] == "../my%20results"
    assert [p.name for p in out.parent.iterdir()] == ["board.html"]


def test_a_page_that_can_not_be_written_is_one_line(tmp_path, capsys):
    Store(tmp_path).write(record())
    args = ["html", "--results-dir", str(tmp_path), "--out", str(tmp_path / "a.json" / "x.html")]
    assert main(args) == 1
    assert re.fullmatch(r"error: --out .*x\.html: .*\n", capsys.readouterr().err)


# In a browser.

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="no chromium on the PATH; Debian's is enough"
)


def chromium(path, fragment="", *options):
    done = subprocess.run(
        ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu",
         "--virtual-time-budget=5000", *options, f"file://{path}#{fragment}"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return done.stdout


def clicked(tmp_path, text, clicks):
    """Return the page after a script has clicked, which its own policy would not let in."""
    text = re.sub("<meta http-equiv[^>]*>", "", text)
    path = tmp_path / "clicked.html"
    path.write_text(text.replace("</body>", f"<script>{clicks}</script></body>"))
    return Reader(chromium(path, "", "--dump-dom"))


@pytest.fixture(scope="module")
def board():
    """Return a page with values whose order as text is another than as numbers."""
    rows = runs()
    rows += [record("n", 9.5, quant="gptq", overrides=["quant=gptq"])]
    rows += [record("o", 100.0, quant="lrq", task="other", model="mobilenet_v2")]
    return page(rows, [], "results")


def means(read):
    return [row[3].partition(" ")[0] for row in read.shown]


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_headings_sort_and_say_so(tmp_path, board):
    click = "document.querySelector('th[data-key=mean] button').click();"
    up = clicked(tmp_path, board, click)
    assert means(up) == ["9.50", "50.00", "92.00", "failed", "100.00"]
    assert [a["data-key"] for _, a in up.tags if a.get("aria-sort") == "ascending"] == ["mean"]
    down = clicked(tmp_path, board, click * 2)
    assert means(down) == ["92.00", "50.00", "9.50", "failed", "100.00"]
    assert [a["data-key"] for _, a in down.tags if a.get("aria-sort") == "descending"] == ["mean"]
    assert [row["runs"] for row in down.rows[:2]] == [0, 2]


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_filters_and_search_choose_rows(tmp_path, board):
    path = tmp_path / "board.html"
    path.write_text(board)
    for fragment, expected in {
        "quant=flexround": ["92.00", "failed"],
        "quant=flexround&width=W4": ["92.00"],
        "model=mobilenet_v2": ["100.00"],
        "task=digits&text=GPTQ": ["9.50"],
        "text=it+broke": ["failed"],
        "text=no+such": [],
        "sort=digits.ascending.mean&task=digits": ["9.50", "50.00", "92.00", "failed"],
        "sort=0.ascending.mean&task=digits": ["9.50", "50.00", "92.00", "failed"],
        "model=gone": ["92.00", "failed", "50.00", "9.50", "100.00"],
    }.items():
        assert means(Reader(chromium(path, fragment, "--dump-dom"))) == expected, fragment
    chosen = clicked(
        tmp_path, board,
        "const f = document.forms[0]; f.elements.quant.value = 'rtn';"
        "f.elements.quant.dispatchEvent(new Event('input', {bubbles: true}));",
    )  # fmt: skip
    assert means(chosen) == ["50.00"]
    lines = [a for tag, a in chosen.tags if tag == "li" and "data-quant" in a]
    assert {a["data-quant"] for a in lines if "hidden" not in a} == {"rtn"}


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_a_row_opens_to_its_runs(tmp_path, board):
    click = "document.querySelector('tr[data-runs] button').click();"
    read = clicked(tmp_path, board, click)
    links = [a["href"] for tag, a in read.tags if tag == "a"]
    assert links == ["results/f0.json", "results/f1.json", "results/f2.json"]
    assert [a["aria-expanded"] for _, a in read.tags if "aria-expanded" in a][:2] == [
        "true", "false",
    ]  # fmt: skip
    assert not [1 for tag, _ in clicked(tmp_path, board, click * 2).tags if tag == "article"]
    path = tmp_path / "board.html"
    path.write_text(board)
    opened = chromium(path, "run=n", "--dump-dom")
    assert "<code>python run.py quant=gptq</code>" in opened


@pytest.mark.slow
@needs_chromium
def test_in_a_browser_no_script_of_a_record_runs(tmp_path):
    evil = record(
        "evil", model=EVIL, quant=EVIL, task=EVIL, overrides=[EVIL], commit=EVIL, device=EVIL
    )
    failed = record("failed", status="failed", error=EVIL)
    opening = "for (const b of document.querySelectorAll('tbody button')) b.click();"
    read = clicked(tmp_path, page([evil, failed], [], "results"), opening)
    assert [tag for tag, _ in read.tags].count("article") == 2
    assert not [1 for tag, a in read.tags if tag == "img" or "onerror" in a]
    # And the page's policy holds against one that had come in.
    path = tmp_path / "policy.html"
    broken = page([record()], [], "results").replace("<main>", f"<main>{EVIL}")
    path.write_text(broken)
    assert "<title>Leaderboard</title>" in chromium(path, "", "--dump-dom")
    path.write_text(re.sub("<meta http-equiv[^>]*>", "", broken))
    assert "<title>run</title>" in chromium(path, "", "--dump-dom")


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_in_a_browser_the_page_fits_a_desk_and_a_phone(tmp_path, board, width, height):
    path, picture = tmp_path / "board.html", tmp_path / "board.png"
    path.write_text(board)
    size = f"--window-size={width},{height}"
    chromium(path, "run=f0", size, f"--screenshot={picture}")
    assert struct.unpack(">II", picture.read_bytes()[16:24]) == (width, height)
    # Only the tables scroll sideways, never the page. A frame, as windows have a least width.
    told = (
        "const inner = frame.contentDocument; inner.querySelector('tbody button').click();"
        "const root = inner.documentElement;"
        "setTimeout(() => { document.title = [root.clientWidth, root.scrollWidth].join(); }, 500);"
    )
    text = html.escape(board)
    path.write_text(
        f'<iframe width={width} height={height} style="border: 0" srcdoc="{text}"></iframe>'
        f"<script>const frame = document.querySelector('iframe');"
        f"frame.onload = () => {{ {told} }};</script>"
    )
    shown = chromium(path, "", "--hide-scrollbars", "--dump-dom")
    assert f"<title>{width},{width}</title>" in shown
