"""The sizes of tokens behind each block, on outputs that are known."""

from __future__ import annotations

import torch

from benchmarks.token_sizes import sizes, table
from flexround.models.language_adapter import LanguageAdapter
from tests.flexround.models.test_language import CPU, EXAMPLE, halves, network, tokens


def test_sizes_are_root_mean_squares_of_median_first_and_largest_other():
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    scale = torch.tensor([[90.0, 2.0, 3.0], [70.0, 2.0, 5.0], [80.0, 2.0, 4.0]])
    assert sizes(scale[..., None] * signs) == (4.0, 80.0, 5.0)


def test_the_last_row_is_of_what_the_last_norm_sees():
    adapter = LanguageAdapter(network("llama"), EXAMPLE, CPU)
    rows = table(adapter, halves(tokens())).splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [b.name for b in adapter.blocks()]
    with torch.no_grad():
        last = torch.cat(list(adapter.last_outputs(halves(tokens()))))
    assert rows[-1].endswith(" | ".join(f"{size:.1f}" for size in sizes(last)) + " |")
