import pytest

from mp_plugin.parameter_names import plain_name


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ("net.0.weight", "net.0.weight"),
        ("_fsdp_wrapped_module.net._fsdp_wrapped_module.0.weight", "net.0.weight"),
        ("net._checkpoint_wrapped_module.0.weight", "net.0.weight"),
        ("net._orig_mod.0.weight", "net.0.weight"),
        ("_fsdp_wrapped_module._flat_param", "*"),
        ("_fsdp_wrapped_module.net._fsdp_wrapped_module._flat_param", "net.*"),
        ("student.module.weight", "student.module.weight"),  # an attribute may well be called so
    ],
)
def test_what_wrappers_put_in_is_left_out(wrapped: str, plain: str) -> None:
    assert plain_name(wrapped) == plain
