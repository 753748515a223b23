import torch

from mp_plugin.instance import replace_attribute


def test_what_the_instance_had_comes_back() -> None:
    layer = torch.nn.Linear(1, 1)
    layer.mark = "mine"
    outer = replace_attribute(layer, "mark", "first")
    inner = replace_attribute(layer, "mark", "second")
    assert layer.mark == "second"
    inner()
    assert layer.mark == "first"
    outer()
    assert layer.mark == "mine"


def test_what_only_the_class_had_is_the_class_s_again() -> None:
    layer = torch.nn.Linear(1, 1)
    undo = replace_attribute(layer, "forward", lambda inputs: inputs)
    assert torch.equal(layer(torch.ones(3)), torch.ones(3))
    undo()
    undo()
    assert "forward" not in vars(layer)
    assert layer(torch.ones(1)).shape == (1,)
