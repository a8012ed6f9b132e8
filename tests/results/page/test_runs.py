"""What the page's script reads of rows: each one's settings, from what all of them share."""

from __future__ import annotations

import json

from results.__main__ import main
from results.page.page import page
from results.page.runs import runs_of
from results.page.sections import Beside
from results.records.searches import write
from results.records.store import Store
from results.tables.search import report
from tests.results.page.test_page import EVIL, Reader
from tests.results.records.test_store import record
from tests.results.tables.test_search import of, search, trial


def decoded(settings):
    """Return the settings of each row by name, as the script puts them together."""
    rows = []
    for own in settings["own"]:
        found = settings["shared"] | dict(settings["values"][at] for at in own)
        rows.append({name: text for name, text in found.items() if text is not None})
    return rows


def test_settings_are_those_of_each_row():
    rows = [
        {"bits": 4, "seed": 0, "recon": {"lr": 1e-3, "iters": 100}, "symmetric": True},
        {"bits": 3, "seed": 1, "recon": {"lr": 1e-3, "iters": 100}, "symmetric": True},
        {"bits": 3, "seed": 2, "quant": {"_target_": "RTN", "seed": 5}, "symmetric": None},
    ]
    data = runs_of([[record(str(i), settings=row, bits=row["bits"])] for i, row in enumerate(rows)])
    common = {"metric": "top1", "task_version": "1", "average_bits": "null"}
    common |= {  # off, as no row has them
        "transform._target_": "none", "allocation._target_": "none", "grid._target_": "integer",
        "stream_dtype": "float32", "bits_per_layer": "null",
    }  # fmt: skip
    learned = {"recon.lr": "0.001", "recon.iters": "100", "symmetric": "true"}
    assert decoded(data["settings"]) == [
        common | learned | {"bits": "4"},
        common | learned | {"bits": "3"},
        common | {"quant._target_": "RTN", "symmetric": "null", "bits": "3"},
    ]
    # What most rows have is said once.
    assert data["settings"]["own"][1] == []
    json.dumps(data, allow_nan=False)


def searches():
    records = [
        trial(name, [error], settings={"bits": 4, "recon": {"lr": lr}})
        for name, error, lr in (("a", 2.0, 0.5), ("b", 1.0, 0.25))
    ]
    return records, of([search("flexround", "ab", chosen=0)], records)


def test_searches_are_a_section_with_what_is_wrong_with_them():
    records, found = searches()
    text = page(records, ["recon.lr"], "results", Beside(searches=found))
    section = text.partition('id="searches"')[2].partition("</section>")[0]
    assert "model=resnet18 bits=3 recon.held_out=8" in section
    cells = [cell.partition("</td>")[0] for cell in section.split("<td>")[1:]]
    assert cells == ["flexround", "2 of 2", "0", "2", "1", "recon.lr=0.1"]
    assert "winner is trial 0" in section
    assert "winner is trial 0" in report(found)
    assert 'id="searches"' not in page(records, ["recon.lr"], "results")


def test_nothing_of_a_search_becomes_part_of_the_page():
    records = [trial("a", [2.0])]
    found = of([search(EVIL, "a", chosen=0)], records)
    text = page(records, [], "results", Beside(searches=found))
    assert not [1 for tag, a in Reader(text).tags if tag == "img" or "onerror" in a]


def test_the_command_finds_the_searches_of_a_folder(tmp_path, capsys):
    store = Store(tmp_path / "results")
    store.root.mkdir()
    for row in searches()[0]:
        store.write(row)
    path = write(store.root, search("flexround", "ab", chosen=1))
    out = tmp_path / "page.html"
    args = ["html", "--results-dir", str(store.root), "--out", str(out), "--by", "recon.lr"]
    assert main(args) == 0
    assert "flexround" in out.read_text().partition('id="searches"')[2]
    # A search is whole where some of its trials are chosen: those that are not have not failed.
    assert main([*args, "--where", "recon.lr=0.5"]) == 0
    shown = out.read_text().partition('id="searches"')[2].partition("</section>")[0]
    cells = [cell.partition("</td>")[0] for cell in shown.split("<td>")[1:]]
    assert cells[:5] == ["flexround", "2 of 2", "0", "2", "1"]
    assert "not fair" not in shown
    capsys.readouterr()
    assert main(["search", "--results-dir", str(store.root), "--where", "recon.lr=0.5"]) == 0
    assert "not fair" not in capsys.readouterr().out
    # Of other runs' searches nothing is shown.
    store.write(record("c", quant="rtn", settings={"bits": 4, "recon": {"lr": 0.5}}))
    assert main([*args, "--where", "quant=rtn"]) == 0
    assert 'id="searches"' not in out.read_text()
    capsys.readouterr()
    path.write_text("{}")
    assert main(args) == 0
    assert "the page is without searches" in capsys.readouterr().out
