import pytest

from mp_plugin.errors import ConfigError
from mp_plugin.modes import MODES, parse_mode


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("32-true", "32-true"),
        ("fp32", "32-true"),
        (32, "32-true"),
        ("tf32", "tf32"),
        ("bf16", "bf16-mixed"),
        ("bf16-mixed", "bf16-mixed"),
        ("fp16", "16-mixed"),
        (16, "16-mixed"),
        ("bf16_true", "bf16-true"),
        ("fp16_true", "16-true"),
    ],
)
def test_every_name_means_one_mode(given: str | int, name: str) -> None:
    assert parse_mode(given).name == name


@pytest.mark.parametrize("given", ["fp8", "", "FP16", 64, True, None, 16.0, ["bf16"]])
def test_anything_else_is_refused_with_the_choices(given: object) -> None:
    with pytest.raises(ConfigError, match=r"precision=.* is unknown; accepted: '32-true', .*'bf16-mixed'.*'fp16'"):
        parse_mode(given)  # type: ignore[arg-type]


def test_only_fp16_with_fp32_weights_scales_its_loss() -> None:
    assert [mode.name for mode in MODES.values() if mode.scales_loss] == ["16-mixed"]
    assert [mode.name for mode in MODES.values() if mode.is_mixed] == ["bf16-mixed", "16-mixed"]
