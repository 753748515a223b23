import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mp_plugin.buffers import LastGoodBuffers
from tests.helpers.training import assert_bitwise_equal
from tests.unit.numerics.test_unscale import _operators


class Buffered(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool))
        self.register_buffer("constant", torch.ones(5))
        self.register_buffer("empty", torch.zeros(0))


def test_a_poisoned_batch_leaves_no_trace() -> None:
    module = Buffered()
    module.norm(torch.randn(4, 3))
    good = LastGoodBuffers(module)
    good.save()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.norm(torch.full((4, 3), math.nan))
    assert module.norm.running_mean.isnan().all()
    good.restore()
    torch.testing.assert_close(dict(module.named_buffers()), before, rtol=0, atol=0)


def test_one_launch_per_kind_of_buffer_and_none_for_what_cannot_be_poisoned() -> None:
    good = LastGoodBuffers(Buffered())
    good.save()
    # Of fp32 statistics and of integer counters: torch takes a list of mixed dtypes one by one.
    assert _operators(good.save) == ["aten._foreach_copy_.default"] * 2
    assert _operators(LastGoodBuffers(torch.nn.Linear(2, 2)).save) == []


def test_a_second_poisoning_is_taken_back_too() -> None:
    module = Buffered()
    good = LastGoodBuffers(module)
    good.save()
    for _ in range(2):
        module.norm(torch.full((4, 3), math.inf))
        good.restore()
        assert module.norm.running_mean.tolist() == [0, 0, 0]
        assert module.norm.num_batches_tracked == 0


def test_only_the_poisoned_ones_go_back_if_asked() -> None:
    module = torch.nn.ModuleList([torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)])
    good = LastGoodBuffers(module)
    good.save()
    module[0](torch.full((2, 1), math.nan))
    module[1](torch.full((2, 1), 10.0))
    good.restore_non_finite()
    assert (module[0].running_mean.item(), module[1].running_mean.item()) == (0.0, 1.0)


def test_all_of_them_are_looked_at_with_one_wait() -> None:
    module = torch.nn.ModuleList([torch.nn.BatchNorm1d(2) for _ in range(4)])
    good = LastGoodBuffers(module)
    good.save()
    module[2].running_var[1] = math.inf
    operators = _operators(good.restore_non_finite)
    assert sum(name.startswith(("aten.is_nonzero", "aten._local_scalar_dense")) for name in operators) <= 1
    assert operators.count("aten.copy_.default") == 1
    assert module[2].running_var.tolist() == [1, 1]


class Assigning(torch.nn.Module):
    """Keeps its statistics as a functional style does: by new tensors under the old names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Module()
        self.inner.register_buffer("mean", torch.zeros(3))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, inputs: torch.Tensor) -> None:
        self.inner.mean = 0.5 * self.inner.mean + inputs.mean(0)
        self.steps = self.steps + 1


@pytest.mark.parametrize("restore", ["restore", "restore_non_finite"])
def test_a_buffer_that_forward_replaces_goes_back(restore: str) -> None:
    module = Assigning()
    good = LastGoodBuffers(module)
    for _ in range(2):
        module(torch.ones(2, 3))
        good.save()
    there = module.inner.mean
    module(torch.full((2, 3), math.nan))
    there.mul_(2)  # and what it held is written to as well
    getattr(good, restore)()
    assert module.inner.mean is there
    assert there.tolist() == [1.5] * 3
    assert module.steps == (2 if restore == "restore" else 3)


def test_a_buffer_that_comes_late_or_by_loading_is_kept_from_the_next_save_on() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    good = LastGoodBuffers(module)
    good.save()
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()}, assign=True)
    module.register_buffer("late", torch.ones(2))
    good.restore()
    assert module.late.tolist() == [1, 1]
    module.load_state_dict({name: value + 2 for name, value in module.state_dict().items()}, assign=True)
    good.save()
    module[0].running_mean.fill_(math.nan)
    module.late.fill_(math.nan)
    good.restore()
    assert module[0].running_mean.tolist() == [2, 2, 2]
    assert module.late.tolist() == [3, 3]


def test_a_cache_that_grew_stays() -> None:
    """Its module remembers the new length elsewhere and would read past the end of the old one."""
    module = torch.nn.Module()
    module.register_buffer("replaced", torch.ones(2))
    module.register_buffer("resized", torch.ones(2))
    module.register_buffer("missing", None)
    module.register_buffer("deleted", torch.ones(2))
    good = LastGoodBuffers(module)
    good.save()
    module.replaced, module.missing = torch.ones(4), torch.ones(4)
    module.resized.resize_(4)
    del module.deleted
    good.restore()
    good.restore_non_finite()
    assert [len(buffer) for buffer in (module.replaced, module.resized, module.missing)] == [4, 4, 4]
    good.save()
    module.resized.fill_(2)
    good.save()
    module.resized.fill_(math.nan)
    good.restore()
    assert module.resized.tolist() == [2] * 4


def test_tied_buffers_stay_tied() -> None:
    module = torch.nn.ModuleList([torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)])
    module[1].running_mean = module[0].running_mean
    good = LastGoodBuffers(module)
    good.save()
    module[0].running_mean = torch.full((1,), math.nan)
    good.restore()
    assert module[0].running_mean is module[1].running_mean
    assert module[0].running_mean.item() == 0


def test_a_lazy_buffer_is_kept_once_it_has_values() -> None:
    module = torch.nn.LazyBatchNorm1d(affine=False)
    good = LastGoodBuffers(module)
    good.save()
    good.restore()
    module(torch.randn(4, 2))
    good.save()
    before = module.running_mean.clone()
    module(torch.full((4, 2), math.nan))
    good.restore()
    assert_bitwise_equal([module.running_mean], [before])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # deprecated, and still trained with
def test_a_scripted_module_has_a_way_back_too() -> None:
    module = torch.jit.script(torch.nn.BatchNorm1d(2))
    good = LastGoodBuffers(module)
    good.save()
    assert _operators(good.save) == ["aten._foreach_copy_.default"] * 2
    module(torch.full((2, 2), math.nan))
    good.restore()
    assert module.running_mean.tolist() == [0, 0]
    assert module.num_batches_tracked == 0


def inference_tensor() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3)


def fake_tensor() -> torch.Tensor:
    with FakeTensorMode():
        return torch.ones(3)


ODD = {
    "expanded": lambda: torch.ones(1).expand(3),
    "inference": inference_tensor,
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "mkldnn": lambda: torch.eye(3).to_mkldnn(),
    "lazy": torch.nn.UninitializedBuffer,
    "meta": lambda: torch.ones(3, device="meta"),
    "fake": fake_tensor,
    "fp8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "needs a gradient": lambda: torch.ones(3, requires_grad=True),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "transposed": lambda: torch.ones(2, 3).t(),
}


@pytest.mark.filterwarnings("ignore:.*(nested tensors|Sparse CSR).*:UserWarning")  # torch: in prototype or beta state
@pytest.mark.parametrize("kind", ODD)
def test_a_buffer_of_an_odd_kind_does_no_harm(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    module = torch.nn.BatchNorm1d(2)
    odd = ODD[kind]()
    module.register_buffer("odd", odd)
    good = LastGoodBuffers(module)
    for restore in (good.restore, good.restore_non_finite, lambda: good.restore_where(torch.ones(()))):
        good.save()
        module.running_mean.fill_(math.nan)
        restore()
        assert module.running_mean.tolist() == [0, 0]
        assert module.odd is odd
    is_named = kind in {"nested", "jagged", "sparse", "compressed", "mkldnn", "fake"}  # can be poisoned in place
    assert len(caplog.records) == is_named
    assert ("odd (not dense)" in caplog.text) == is_named


@pytest.mark.parametrize("restore", ["restore_non_finite", "restore_where"])
@pytest.mark.parametrize("kind", ["expanded", "inference"])
def test_what_cannot_be_written_to_comes_back_once_it_is_replaced(kind: str, restore: str) -> None:
    module = torch.nn.Module()
    module.register_buffer("odd", ODD[kind]())
    good = LastGoodBuffers(module)
    good.save()
    module.odd = module.odd * math.nan
    getattr(good, restore)(*[torch.ones(())] * (restore == "restore_where"))
    assert module.odd.tolist() == [1, 1, 1]


def test_the_largest_are_left_out_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    module.register_buffer("mask", torch.ones(2**18))
    good = LastGoodBuffers(module, largest_copy=2**10)
    for _ in range(2):
        good.save()
        module.mask = torch.full((2**18,), math.nan)
        module[0].running_mean.fill_(math.nan)
        good.restore()
        assert module[0].running_mean.tolist() == [0, 0]
        assert module.mask.isnan().all()
    (record,) = caplog.records
    assert "mask (1 MiB)" in record.getMessage()
    assert "running" not in record.getMessage()


def test_the_bound_is_on_the_sum() -> None:
    module = torch.nn.Module()
    for index in range(3):
        module.register_buffer(str(index), torch.ones(1 + index))
    good = LastGoodBuffers(module, largest_copy=12)
    good.save()
    for buffer in module.buffers():
        buffer.fill_(math.nan)
    good.restore()
    assert [bool(buffer.isfinite().all()) for buffer in module.buffers()] == [True, True, False]


class Mixed(torch.nn.Module):
    """Buffers of several kinds, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("matrix", torch.ones(2, 3).t())
        self.register_buffer("short", torch.ones(5, dtype=torch.bfloat16))
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("mirrored", torch.ones(2, dtype=torch.complex64).conj())
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("tied", self.norm.running_mean)
        self.register_buffer("empty", torch.zeros(0))

    def spoil(self) -> None:
        for buffer in self.buffers():
            buffer.fill_(math.nan if buffer.is_floating_point() or buffer.is_complex() else 0)


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_a_device_decides_whether_they_go_back(found: float) -> None:
    module = Mixed()
    module.norm.num_batches_tracked.fill_(5)
    good = LastGoodBuffers(module)
    good.save()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.spoil()
    written = {name: buffer.clone() for name, buffer in module.named_buffers()}
    identities = [id(buffer) for buffer in module.buffers()]
    good.restore_where(torch.tensor(found))
    expected = before if found else written
    torch.testing.assert_close(dict(module.named_buffers()), expected, rtol=0, atol=0, equal_nan=True)
    assert [id(buffer) for buffer in module.buffers()] == identities


def test_a_device_that_decides_waits_for_nobody_and_launches_four_per_kind() -> None:
    good = LastGoodBuffers(Buffered())
    good.save()
    found_inf = torch.zeros(())
    found = _operators(lambda: good.restore_where(found_inf))
    launches = [name for name in found if "view" not in name and "split" not in name]
    assert len(launches) == 2 * 5, "one comparison, two flat copies, one choice, one copy back"
    assert not any(name.startswith(("aten._local_scalar_dense", "aten.nonzero")) for name in found)


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_a_buffer_that_was_replaced_keeps_its_tensor_where_a_device_decides(found: float) -> None:
    module = Assigning()
    good = LastGoodBuffers(module)
    module(torch.ones(2, 3))
    good.save()
    module(torch.full((2, 3), math.nan))
    there = module.inner.mean
    good.restore_where(torch.tensor(found))
    assert module.inner.mean is there
    assert bool(there.isnan().any()) is not bool(found)
    assert module.steps == (1 if found else 2)


def test_a_buffer_of_another_shape_is_left_alone_where_a_device_decides() -> None:
    module = Mixed()
    good = LastGoodBuffers(module)
    good.save()
    module.short = torch.full((6,), math.nan)
    module.phase = None
    good.restore_where(torch.ones(()))
    assert module.short.isnan().all()
