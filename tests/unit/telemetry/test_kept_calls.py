import pytest
import torch

from mp_plugin.numerics.finiteness import is_allocated
from mp_plugin.telemetry import kept_calls
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


def test_lent_memory_is_copied_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = torch.ones(2), torch.ones(2)
    kept = KeptCalls(lambda: [("net.weight", weight)])
    calls = [kept.keep(place, torch.mul, args, {}, None) for place, args in enumerate([(weight[:1], x), (x, weight)])]
    monkeypatch.setattr(kept_calls, "LARGEST_COPIES", 16)  # 4 + 8 bytes are there by now
    assert kept.keep("too much", torch.mul, (weight, x), {}, None) is None
    assert kept.keep("little", torch.mul, (weight[:1], x), {}, None) is not None
    assert kept.keep("not lent", torch.mul, (x, x), {}, None) is not None
    weight.zero_()
    weight.untyped_storage().resize_(0)
    first, second = calls
    assert first is not None
    assert second is not None
    assert (first.args[0].tolist(), second.args[1].tolist()) == ([1.0], [1.0, 1.0])
    assert first.args[1].data_ptr() == second.args[0].data_ptr() == x.data_ptr()
    assert (first.name, second.name) == ("net.weight", None)


def test_what_was_given_back_is_not_copied() -> None:
    kept, x, freed = KeptCalls(), torch.ones(2), torch.ones(2)
    call = kept.keep("key", torch.mul, (x, freed), {}, None)
    assert call is not None
    freed.untyped_storage().resize_(0)
    kept.before_write(x)
    x.zero_()
    assert call.args[0].tolist() == [1.0, 1.0]
    assert not is_allocated(call.args[1])


def test_calls_with_one_key_do_not_take_all_places() -> None:
    kept = KeptCalls()
    calls = [kept.keep(key, None, (), {}, None) for key in range(LARGEST_NUMBER) for _ in range(SAME_KEY + 1)]
    counted = [call is not None for call in calls]
    assert counted[: 2 * (SAME_KEY + 1)] == ([True] * SAME_KEY + [False]) * 2
    assert sum(counted) == LARGEST_NUMBER
