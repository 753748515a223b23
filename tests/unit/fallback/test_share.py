import pytest
from torch.nn import Linear, ReLU, Sequential

from mp_plugin.fallback.policy import Share
from mp_plugin.fallback.share import refusal, share_of


@pytest.mark.parametrize(
    ("names", "layers"), [((), 0), (("0",), 2), (("0.0", "0"), 2), (("0.1",), 0), (("1",), 1), (("10", "0.0"), 1)]
)
def test_layers_that_bear_parameters_count_once_wherever_they_are(names: tuple[str, ...], layers: int) -> None:
    model = Sequential(Sequential(Linear(2, 2), ReLU(), Linear(2, 2)), Linear(2, 2), ReLU())
    assert share_of(model, names) == Share(layers=layers, total=3)


def test_a_refusal_names_layers_share_and_limit() -> None:
    told = refusal(("a", "b"), Share(layers=3, total=9), 0.25)
    assert told == "a, b in FP32 would make 3 of 9 layers, beyond Fallback.max_fraction=0.25"
