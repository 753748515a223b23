import torch

from mp_plugin.autocast import autocast


def test_a_weight_is_cast_once_per_forward_pass() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    with autocast("cpu", torch.bfloat16):
        first, second = weight @ weight, weight @ weight
    # With the cache, both products share one cast of the weight, so their graphs meet in one node.
    casts = {node for output in (first, second) for node, _ in output.grad_fn.next_functions}
    assert len(casts) == 1


def test_a_cast_made_without_gradients_does_not_lose_them_later() -> None:
    """pytorch issues 65766 and 112583."""
    layer = torch.nn.Linear(2, 2)
    with autocast("cpu", torch.float16):
        with torch.no_grad():
            layer(torch.ones(1, 2))
        output = layer(torch.ones(1, 2))
    assert output.requires_grad
    assert output.dtype is torch.float16
