"""README's words on EfficientNet-Lite0 are the verdict of the claim that they are about."""

from __future__ import annotations

import re

from scripts.claims_page import PAGE
from scripts.readme_tables import README

CLAIM = "flexround_adaround_lite0_w4"


def test_the_points_that_flexround_is_ahead_are_those_of_the_claim():
    """The page of claims is held to the ledger by tests/scripts/test_claims_page.py."""
    (row,) = re.findall(rf"^\| {CLAIM} .*$", PAGE.read_text(), re.MULTILINE)
    (ours,) = re.findall(r"\| ([+-]\d+\.\d+) points top1", row)
    (seeds,) = re.findall(r" to [+-]\d+\.\d+ +\| (\d+) ", row)
    text = " ".join(README.read_text().split())
    sentence = r"EfficientNet-Lite0 .*? is (\d+) points ahead at four bits \((\w+) seeds,"
    told = re.search(sentence, text)
    assert told, "the sentence is another one"
    points, count = told.groups()
    assert int(points) == round(float(ours))
    assert count == {"3": "three", "4": "four", "5": "five"}[seeds]
