import torch

from mp_plugin.telemetry.kept_calls import LARGEST_NUMBER, SAME_KEY, KeptCalls


def test_a_call_is_kept_as_it_was() -> None:
    kept, x, y = KeptCalls(), torch.ones(2, requires_grad=True), torch.ones(2)
    product = torch.mul(x, y)
    call = kept.keep("key", torch.mul, (x, y), {"unused": [x]}, product)
    assert call is not None
    assert not any(tensor.requires_grad for tensor in (*call.args, *call.kwargs["unused"], call.output))
    assert call.args[1].data_ptr() == y.data_ptr()
    kept.before_write(torch.ones(2))
    assert call.args[1].data_ptr() == y.data_ptr()
    kept.before_write(y[1:])
    y.zero_()
    kept.before_write(product)
    with torch.no_grad():
        product.zero_()
    for tensor in (*call.args, call.output):
        assert torch.equal(tensor, torch.ones(2))


def test_calls_with_one_key_do_not_take_all_places() -> None:
    kept = KeptCalls()
    calls = [kept.keep(key, None, (), {}, None) for key in range(LARGEST_NUMBER) for _ in range(SAME_KEY + 1)]
    counted = [call is not None for call in calls]
    assert counted[: 2 * (SAME_KEY + 1)] == ([True] * SAME_KEY + [False]) * 2
    assert sum(counted) == LARGEST_NUMBER
