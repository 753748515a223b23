from pathlib import Path

from mp_plugin.chosen_layers import ChosenLayers
from mp_plugin.config import Fallback
from mp_plugin.fallback.precision_map import precision_map
from mp_plugin.modes import parse_mode
from tests.helpers.training import Regression


def test_rules_and_map_are_told_apart_and_a_rule_comes_first(tmp_path: Path) -> None:
    model, path = Regression(), tmp_path / "map.yaml"
    islands = {"net.0": ("proved: it overflowed", 7), "net.2": ("rule: head", 0)}
    precision_map(model, {"net.0": "fp32", "net.2": "fp32"}, islands, "16-mixed").save(path)
    both = ChosenLayers(Fallback(map=str(path), layers=["*.2"]), parse_mode("fp16"))
    both.find(model)
    assert list(both.reasons.items()) == [("net.0", "map: proved: it overflowed"), ("net.2", "rule: *.2")]


def test_a_map_that_was_made_by_a_map_does_not_say_so_twice(tmp_path: Path) -> None:
    model, path = Regression(), tmp_path / "map.yaml"
    precision_map(model, {}, {"net.0": ("map: proved: it overflowed", 7)}, "16-mixed").save(path)
    chosen = ChosenLayers(Fallback(map=str(path)), parse_mode("fp16"))
    chosen.find(model)
    assert chosen.reasons == {"net.0": "map: proved: it overflowed"}
