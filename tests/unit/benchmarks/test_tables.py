"""Tables show what the results say."""

import pytest


def row(precision, seconds, peak, joules=None):
    return {
        "model": "GPT",
        "size": "full",
        "batch_size": 8,
        "precision": precision,
        "seconds": [seconds] * 3,
        "items": 100,
        "unit": "tokens",
        "peak_bytes": peak,
        "joules_per_item": joules,
    }


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


@pytest.mark.parametrize(
    ("seconds", "peak", "holds"),
    [(0.125, 50, "yes"), (0.126, 50, "no"), (0.125, 51, "no"), (0.06, 40, "yes")],
    ids=["just so", "too slow", "too much memory", "better"],
)
def test_a_precision_keeps_the_claim_only_with_both_speed_and_memory(seconds, peak, holds):
    from helpers.tables import precisions_table

    rows = [row("fp32", 0.375, 100), row("bf16", seconds, peak)]
    assert [line[-1] for line in cells(precisions_table({"rows": rows}))[2:]] == ["-", holds]


def test_energy_that_nobody_counted_is_not_a_zero():
    from helpers.tables import precisions_table

    heads, _, with_energy, without = cells(precisions_table({"rows": [row("fp32", 1, 1, 0.5), row("bf16", 1, 1)]}))
    assert (with_energy[heads.index("joules each")], without[heads.index("joules each")]) == ("0.5", "not measured")


def test_speed_is_told_beside_fp32_and_beside_tf32():
    from helpers.tables import precisions_table

    rows = [row("fp32", 0.4, 100), row("tf32", 0.2, 100), row("bf16", 0.1, 60)]
    heads, _, *found = cells(precisions_table({"rows": rows}))
    assert [line[heads.index("speed ÷ fp32")] for line in found] == ["1.00", "2.00", "4.00"]
    assert [line[heads.index("speed ÷ tf32")] for line in found] == ["0.50", "1.00", "2.00"]
    assert [line[heads.index("memory ÷ fp32")] for line in found] == ["1.00", "1.00", "0.60"]
    assert found[2][heads.index("per second")] == "1,000 tokens"


def test_ranks_are_told_what_ours_adds():
    from helpers.tables import growth_tables

    sent = {"stock": {"gradients": 4000, "calls": [4000]}, "ours": {"gradients": 4000, "calls": [8, 4000]}}
    tables = growth_tables({"parameters": [], "tensors": [], "ranks": [{"ranks": 2, **sent}]})
    assert cells(tables["ranks"])[2] == ["2", "4,000", "1", "4,000", "2", "4,008", "8"]
    assert "ranks" not in growth_tables({"parameters": [], "tensors": [], "ranks": []})


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0002, "0.200"), (0.00347, "3.47"), (0.025, "25.0"), (0.09994, "99.9"), (0.09996, "100"), (1.5, "1,500")],
)
def test_times_have_three_digits(seconds, shown):
    from helpers.tables import milliseconds

    assert milliseconds([seconds]) == shown
