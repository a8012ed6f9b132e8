"""Where the page finds the records: files of a folder, to which it leads, or lines of one file."""

from __future__ import annotations

from pathlib import Path

from results.__main__ import main
from results.page.page import Folder
from results.records.lines import to_lines
from tests.results.page.test_page import Reader
from tests.results.records.test_store import record


def rows():
    """Return a run, and one that failed with other settings than any that ended well."""
    stray = record("stray", status="failed", settings={"bits": 4, "seed": 0, "num_samples": 5000})
    return [record("a"), stray]


def test_a_file_of_records_has_no_file_for_each_run(tmp_path, capsys):
    lines, out = tmp_path / "kept.jsonl", tmp_path / "page.html"
    lines.write_bytes(to_lines((row, {}) for row in rows()))
    assert main(["html", "--results-dir", str(lines), "--out", str(out)]) == 0, capsys.readouterr()
    read = Reader(out.read_text())
    assert read.data["folder"] is None
    assert read.data["option"] == f"--results-dir {lines}"
    addresses = [attrs["href"] for _, attrs in read.tags if "href" in attrs]
    assert all((out.parent / address).exists() for address in addresses), addresses
    assert "1 failed in no row" in out.read_text()


def test_a_home_is_looked_up_as_records_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my results").mkdir()
    out = tmp_path / "pages" / "page.html"
    found = Folder.of(Path("~/my results"), out)
    assert found == Folder.of(tmp_path / "my results", out)
    assert found.link == "../my%20results"
