"""Defaults that differ between methods of a sweep are told, settings that are swept are not."""

from __future__ import annotations

from results.tables.differing_defaults import MethodRun, differing_defaults


def run(quant, granularity="PerTensor", model="net", samples=128, **more):
    settings = {
        "granularity": {"_target_": granularity}, "ranges": {"_target_": "LpSearch"},
        "symmetric": False, "num_samples": samples, "task": {"seq_len": 1024},
    }  # fmt: skip
    return MethodRun(model, "text", quant, settings | more)


def test_a_default_that_differs_is_one_line():
    runs = [run("gptq", "PerChannel"), run("gptq", "PerChannel"), run("flexround")]
    assert list(differing_defaults(runs)) == [
        "granularity differs between methods of this sweep: gptq per_channel, flexround per_tensor"
    ]
    assert not list(differing_defaults([run("gptq"), run("flexround")]))


def test_what_is_swept_is_no_difference():
    both = [run(q, g) for q in ("gptq", "flexround") for g in ("PerTensor", "PerChannel")]
    assert not list(differing_defaults(both))
    models = [
        run(q, g, m) for q in ("a", "b") for m, g in (("x", "PerTensor"), ("y", "PerChannel"))
    ]
    assert not list(differing_defaults(models)), "of different models"
    assert list(differing_defaults(both[:3])), "one method has one of them, the other both"


def test_a_difference_on_some_models_names_them():
    runs = [run("a", model="x", samples=1), run("b", model="x", samples=2)]
    runs += [run("a", model="y"), run("b", model="y")]
    assert list(differing_defaults(runs)) == [
        "num_samples differs between methods of this sweep: a 1, b 2 (x on text)"
    ]


def test_texts_protocols_and_groups_are_conditions():
    c4 = {
        "seq_len": 2048, "calibration": {"corpus": {"_target_": "C4"}},
        "protocol": {"name": "gptq", "split": "test", "window": 2048},
    }  # fmt: skip
    lines = list(differing_defaults([run("a", task=c4), run("b")]))
    assert [line.rpartition(": ")[2] for line in lines] == [
        "a c4, b own", "a 2048, b 1024", "a gptq test 2048, b none",
    ]  # fmt: skip
    pile = {"corpus": {"_target_": "Column", "path": "NeelNanda/pile-10k"}}
    (line,) = differing_defaults([run("a", task={"calibration": pile, "seq_len": 1024}), run("b")])
    assert line.endswith(": a pile-10k, b own")
    groups = [{"granularity": {"_target_": "PerGroup", "group_size": size}} for size in (64, 128)]
    runs = [
        MethodRun("net", "text", q, run(q).settings | g) for q, g in zip("ab", groups, strict=True)
    ]
    (line,) = differing_defaults(runs)
    assert line.endswith(": a per_group 64, b per_group 128")


def learned(quant, target="FlexRound", model="net", **recon):
    recon = {"lr": 1e-3, "iters": 5000, "batch_size": 32} | recon
    settings = run(quant).settings | {"quant": {"_target_": target}, "recon": recon}
    return MethodRun(model, "text", quant, settings)


def test_a_schedule_that_differs_between_variants_of_one_method_is_told():
    """An ablation has no schedule of the model's own, as FlexRound has: theirs are no ablation."""
    runs = [learned("flexround", lr=0.005, iters=500), learned("flexround_fixed_s1")]
    assert list(differing_defaults(runs)) == [
        "recon.lr differs between variants of FlexRound in this sweep: "
        "flexround 0.005, flexround_fixed_s1 0.001",
        "recon.iters differs between variants of FlexRound in this sweep: "
        "flexround 500, flexround_fixed_s1 5000",
    ]
    assert list(differing_defaults([learned("a", batch_size=8), learned("b"), learned("c")])) == [
        "recon.batch_size differs between variants of FlexRound in this sweep: a 8, b 32, c 32"
    ]
    by_bits = [learned("flexround", lr=2e-4), learned("flexround", lr=3e-3), learned("b")]
    assert list(differing_defaults(by_bits)), "one variant has a rate for each width"


def test_methods_have_schedules_of_their_own_and_a_swept_one_is_no_difference():
    assert not list(differing_defaults([learned("flexround"), learned("a", "AdaRound", lr=0.1)]))
    solver = learned("gptq", "GPTQ", batch_size=8)
    assert not list(differing_defaults([learned("flexround"), solver, run("rtn")]))
    swept = [learned(q, lr=lr) for q in ("flexround", "flexround_fixed_s1") for lr in (1e-3, 1e-2)]
    assert not list(differing_defaults(swept))
    trials = [learned(q, lr=lr) for q, lr in (("a", 0.1), ("a", 0.2), ("b", 0.1), ("b", 0.3))]
    assert not list(differing_defaults(trials)), "a search finds each variant its own"
    models = [learned(q, model=m, lr=lr) for m, lr in (("x", 0.1), ("y", 0.2)) for q in ("a", "b")]
    assert not list(differing_defaults(models)), "of different models"
    (line,) = differing_defaults([*models, learned("c", model="x", lr=0.3)])
    assert line.endswith(": a 0.1, b 0.1, c 0.3 (x on text)")
