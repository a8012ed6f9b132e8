"""The file of claims: what it may say, and that ours says it."""

from __future__ import annotations

import pytest
import yaml

from results.ledger.claims import chosen, read
from results.ledger.verdicts import published_effect

GOOD = {
    "id": "a", "says": "A above B", "source": "a paper", "under": ["both bits=2"],
    "more": ["quant=flexround"], "less": ["quant=adaround"], "margin": 0.2,
}  # fmt: skip
PUBLISHED = {
    "source": "table02", "of": {"model": "mobilenet_v2", "bits": "W2A32", "metric": "top1"},
    "more": [{"method": "flexround"}], "less": [{"method": "adaround"}],
}  # fmt: skip


def written(tmp_path, *claims):
    path = tmp_path / "claims.yaml"
    path.write_text(
        yaml.safe_dump({"settings": {"both": "model=resnet18"}, "claims": list(claims)})
    )
    return path


def test_words_are_written_out_and_cells_are_sets(tmp_path):
    (claim,) = read(written(tmp_path, GOOD))
    both = {"model=resnet18", "bits=2"}
    assert list(claim.cells) == [both | {f"quant={q}"} for q in ("flexround", "adaround")]


def test_the_papers_effect_is_the_contrast_of_its_numbers(tmp_path):
    (claim,) = read(written(tmp_path, GOOD | {"published": PUBLISHED}))
    assert published_effect(claim) == pytest.approx(46.04 - 39.57)  # Table 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": ["quant=flexrund"]}, "no quant flexrund; there is flexround"),
        ({"under": ["model=resnet81"]}, "no model resnet81; there is resnet18"),
        ({"under": ["task=digit"]}, "no task digit; there is"),
        ({"under": ["neither"]}, "neither is neither NAME=VALUE nor one of both"),
        ({"under": ["both bits=2 bits=3"]}, "bits=[23]: give each NAME=VALUE once"),
        ({"less": []}, "give the cells of more and of less"),
        ({"expect": "worse"}, "expect: Input should be 'better' or 'same'"),
        ({"expect": "same", "margin": 0}, "same needs a margin"),
        ({"margin": -1}, "margin: Input should be greater than or equal to 0"),
        ({"seeds": 0}, "seeds: Input should be greater than or equal to 1"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"needs": "a GPU"}, "give either under, more and less, or needs"),
        ({"under": []}, "give either under, more and less, or needs"),
        ({"published": PUBLISHED | {"source": "table99"}}, "no table table99"),
        ({"published": PUBLISHED | {"more": [{"method": "rtn"}]}}, "0 numbers of table02 have"),
        ({"published": PUBLISHED | {"of": {"model": "resnet18"}}}, "numbers of table02 have"),
        ({"published": PUBLISHED | {"of": {"colour": "red"}}}, "no attribute 'colour'"),
    ],
)  # fmt: skip
def test_what_a_claim_can_not_be_is_told_with_its_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"claims.yaml: claim a: .*{message}"):
        read(written(tmp_path, GOOD | changes))


def test_two_claims_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a second one of this id"):
        read(written(tmp_path, GOOD, GOOD))


def test_our_claims_read_and_are_enough():
    claims = read()
    assert sum(not claim.needs for claim in claims) >= 40
    papers = ("FlexRound", "LRQ", "SignRound", "CDQuant", "AdaRound", "BRECQ", "QDrop", "GPTQ")
    for paper in papers:
        assert any(claim.source.startswith(paper) for claim in claims), paper
    assert chosen(claims, ["gptq"]) == [claim for claim in claims if "gptq" in claim.id]
    with pytest.raises(ValueError, match="no claim flexround_adaround_mobilenet_w5; did you mean"):
        chosen(claims, ["flexround_adaround_mobilenet_w5"])
