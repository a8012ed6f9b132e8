"""The page in a browser: two rows side by side, and the units of an opened run."""

from __future__ import annotations

import html
import re
import shlex

import pytest

from results.__main__ import main
from results.page.page import Folder, page
from results.page.sections import Beside
from results.page.units import units_of
from results.records.store import Store
from tests.results.page.test_page import EVIL, chromium, clicked, needs_chromium
from tests.results.records.test_store import record

pytestmark = [pytest.mark.slow, needs_chromium]

CURVE = [[0, 8.0], [10, 4.0], [20, 1.0]]
FLEXROUND, ADAROUND = (90.0, 92.0, 94.0), (91.0, 92.0, 97.0, 50.0)  # by seed, one of them unpaired


def runs():
    """Return two methods at the same seeds, a third one, and another task."""
    rows = []
    for quant, lr, values in (("flexround", 1e-3, FLEXROUND), ("adaround", 1e-2, ADAROUND)):
        for seed, value in enumerate(values):
            settings = {"bits": 4, "seed": seed, "recon": {"lr": lr, "iters": 100}}
            rows.append(
                record(
                    f"{quant[0]}{seed}", value, quant=quant, seed=seed, settings=settings,
                    seconds=10.0 * (seed + 1), peak_memory_gib=2.0, started=f"{quant}{seed}",
                    blocks=[{"name": "layer1.0", "error_before": 2.0, "error_after": 1.0,
                             "seconds": 3.0, "curve": CURVE}],
                )
            )  # fmt: skip
    rows.append(record("r", 50.0, quant="rtn", settings={"bits": 4, "seed": 7}, seed=7))
    rows.append(record("o", 100.0, quant="rtn", task="other"))
    return rows


@pytest.fixture(scope="module")
def board():
    return page(runs(), [], "results", Beside(units=runs()))


def choose(*labels):
    """Return a script that ticks the boxes of these rows and puts the address into the title."""
    boxes = "".join(
        f"document.querySelector('[aria-label=\"Compare {x}\"]').click();" for x in labels
    )
    return f"{boxes}document.title = location.hash;"


def text_of(dumped, tag, attribute):
    """Return the text of the first element tag with attribute, without the tags in it."""
    inner = re.search(rf"<{tag}[^>]*{attribute}[^>]*>(.*?)</{tag}>", dumped, re.S)
    return html.unescape(re.sub("<[^>]*>", " ", inner[1])) if inner else ""


def dumped(tmp_path, board, script="", fragment=""):
    path = tmp_path / "page.html"
    text = re.sub("<meta http-equiv[^>]*>", "", board)
    path.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    return chromium(path, fragment, "--dump-dom")


def test_two_rows_are_set_side_by_side_over_their_common_seeds(tmp_path, board):
    found = dumped(tmp_path, board, choose("resnet18 flexround W4", "resnet18 adaround W4"))
    panel = text_of(found, "section", 'id="comparison"')
    assert "A: flexround W4, B: adaround W4" in panel
    # The differences are -1, 0 and -3: their mean is -4/3, their deviation sqrt(7/3).
    assert "A \u2212 B: -1.33 \u00b1 1.53 top1 over 3 common seeds" in panel
    assert "higher is better" in panel
    cells = [text for text in re.split(r"\s{2,}", panel) if text]
    at = cells.index("recon.lr")
    assert cells[at : at + 3] == ["recon.lr", "0.001", "0.01"]
    assert "recon.iters" not in cells
    at = cells.index("Seconds of a run, mean")
    assert cells[at + 1 : at + 3] == ["20.0", "25.0"]
    assert "compare flexround adaround --task digits --model resnet18 --where bits=4" in panel
    assert "<title>#compare=f0&amp;compare=a0</title>" in found


def test_runs_of_one_seed_that_differ_in_a_seed_of_the_methods_own_are_averaged(tmp_path):
    rows = [
        record(f"l{own}", value, quant="lrq",
               settings={"bits": 4, "seed": 0, "quant": {"seed": own}})
        for own, value in enumerate((10.0, 50.0, 90.0))
    ]  # fmt: skip
    rows.append(record("f", 40.0, settings={"bits": 4, "seed": 0}))
    text = page(rows, [], "results")
    script = choose("resnet18 lrq W4", "resnet18 flexround W4")
    panel = text_of(dumped(tmp_path, text, script), "section", 'id="comparison"')
    assert "A \u2212 B: +10.00 top1 on the one common seed" in panel


def test_a_rows_command_is_of_its_width_with_activations_alone(tmp_path, capsys):
    store = Store(tmp_path / "results")
    store.root.mkdir()
    rows = [
        record(f"{quant}{acts}{seed}", float(90 + seed), quant=quant, seed=seed,
               settings={"bits": 4, "seed": seed} | ({"act_bits": acts} if acts else {}))
        for quant in ("flexround", "adaround") for acts in (None, 8, 6) for seed in (0, 1)
    ]  # fmt: skip
    for row in rows:
        store.write(row)
    text = page(rows, [], Folder.of(store.root, tmp_path / "page.html"))
    both = ["resnet18 flexround W4A8", "resnet18 adaround W4A8"]
    panel = text_of(dumped(tmp_path, text, choose(*both)), "section", 'id="comparison"')
    (command,) = re.findall(r"python -m results (.*?)\s{2}", panel)
    assert "--where bits=4 --where act_bits=8" in command
    assert main([*shlex.split(command), "--format", "csv"]) == 0
    widths = {line.split(",")[2] for line in capsys.readouterr().out.splitlines()[1:]}
    assert widths == {"W4A8"}
    both = ["resnet18 flexround W4", "resnet18 adaround W4"]
    panel = text_of(dumped(tmp_path, text, choose(*both)), "section", 'id="comparison"')
    assert "--where bits=4" in panel
    assert "act_bits=" not in panel


def test_a_link_shows_the_same_comparison_on_a_page_made_anew(tmp_path, board):
    linked = "compare=f1&compare=a2&sort=digits.descending.mean"
    first = text_of(dumped(tmp_path, board, "", linked), "section", 'id="comparison"')
    assert "A: flexround W4, B: adaround W4" in first
    # Rows have other places, a setting has become a column.
    more = [record("z", 1.0, quant="gptq", task="before", started="0")]
    more += [record("y", 9.0, settings={"bits": 4, "seed": 0, "symmetric": s}, task="n", seed=s)
             for s in (True, False)]  # fmt: skip
    anew = page([*more, *runs()], ["symmetric"], "results", Beside(units=runs()))
    again = dumped(tmp_path, anew, "", linked)
    assert "over 3 common seeds" in text_of(again, "section", 'id="comparison"')
    digits = again.partition('data-task="digits"')[2]
    assert 'data-key="mean"' in digits.partition('aria-sort="descending"')[0][-400:]
    gone = dumped(tmp_path, board, "", "compare=f1&compare=nosuch")
    assert "Not on this page: nosuch" in text_of(gone, "aside", 'id="picked"')


def test_a_third_row_and_another_task_make_way(tmp_path, board):
    names = ["resnet18 flexround W4", "resnet18 adaround W4", "resnet18 rtn W4"]
    third = dumped(tmp_path, board, choose(*names))
    assert "<title>#compare=a0&amp;compare=r</title>" in third
    panel = text_of(third, "section", 'id="comparison"')
    assert "No seed in common" in panel
    other = f"document.querySelector('[data-task=other] .pick input').click();{choose()}"
    elsewhere = dumped(tmp_path, board, choose(*names[:2]) + other)
    assert "<title>#compare=o</title>" in elsewhere
    assert "choose another row of other" in text_of(elsewhere, "aside", 'id="picked"')


def test_an_opened_run_shows_its_units_and_its_curve(tmp_path, board):
    found = dumped(tmp_path, board, "document.title = location.hash;", "run=f1")
    units = text_of(found, "details", "open")
    cells = [text for text in re.split(r"\s{2,}", units) if text]
    assert cells[-4:] == ["layer1.0", "2 \u2192 1", "3", "8 \u2192 1"]
    assert 'aria-label="Loss from 8 to 1 in 20 iterations"' in found
    (corners,) = set(re.findall(r'class="curve".*?points="([^"]*)"', found))
    xs, ys = zip(*(map(float, corner.split(",")) for corner in corners.split()), strict=True)
    # From left to right, a fall in height of log(4) after one of log(2).
    assert list(xs) == sorted(xs)
    assert (ys[2] - ys[1]) / (ys[1] - ys[0]) == pytest.approx(2.0, rel=0.1)


def test_a_run_of_a_file_of_records_has_no_link(tmp_path):
    text = page(runs(), [], Folder("kept.jsonl", is_file=True))
    found = dumped(tmp_path, text, "", "run=f1")
    assert "record  f0" in text_of(found, "article", "class")
    assert "<a " not in found.partition("<script")[0]


def test_a_run_beyond_the_pages_room_names_the_command(tmp_path):
    rows = runs()
    text = page(rows, [], "results", Beside(units=rows[:0]))
    text = text.replace('"whole":true', '"whole":false')
    found = dumped(tmp_path, text, "", "run=f0")
    wanted = "python -m results plot curves --task digits --model resnet18 --where bits=4"
    assert f"{wanted} --where quant=flexround --where seed=0" in found
    assert not units_of(rows, most=10)["whole"]


def test_a_click_opens_a_row_and_keeps_it_in_the_address(tmp_path, board):
    click = (
        "document.querySelector('tbody th button').click(); document.title = `at${location.hash}`;"
    )
    assert "<title>at#run=f0</title>" in dumped(tmp_path, board, click)
    assert "<title>at</title>" in dumped(tmp_path, board, click * 2)


def test_no_script_of_a_record_runs_in_a_comparison(tmp_path):
    evil = [
        record(str(i), model=EVIL, quant=EVIL + str(i), settings={EVIL: EVIL + str(i)}, bits=i,
               blocks=[{"name": EVIL, "curve": CURVE}])
        for i in (3, 4)
    ]  # fmt: skip
    text = page(evil, [], "results", Beside(units=evil))
    script = "for (const b of document.querySelectorAll('tbody input, tbody button')) b.click();"
    read = clicked(tmp_path, text, script)
    assert [tag for tag, _ in read.tags].count("article") == 2
    assert not [1 for tag, a in read.tags if tag == "img" or "onerror" in a]
