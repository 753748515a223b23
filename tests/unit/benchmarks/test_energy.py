def test_nobody_counts_on_a_cpu():
    from helpers.energy import energy_meter

    assert energy_meter("cpu") is None
