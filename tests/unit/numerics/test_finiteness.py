import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mp_plugin.numerics.finiteness import Kind, is_allocated, is_finite, kinds_in, non_finite_counts, non_finite_samples

INF, NAN = math.inf, math.nan
REAL = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EIGHT_BITS = {
    torch.float8_e5m2: [NAN, INF, -INF],
    torch.float8_e4m3fn: [NAN],
    torch.float8_e4m3fnuz: [NAN],
    torch.float8_e5m2fnuz: [NAN],
}


def quietly(make: Callable[[], Tensor]) -> Tensor:
    """Layouts that torch calls a beta, a prototype or deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def sparse_rows(dense: Tensor) -> Tensor:
    return quietly(dense.to_sparse_csr)


@pytest.mark.parametrize("size", [1, 3, 64, 1001])
@pytest.mark.parametrize("spoiled", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", REAL)
def test_one_bad_number_is_seen_wherever_it_is(dtype: torch.dtype, spoiled: float, size: int) -> None:
    torch.manual_seed(0)
    tensor = torch.randn(size, dtype=torch.float64).to(dtype)
    assert is_finite(tensor) is True
    for place in {0, size // 2, size - 1}:
        bad = tensor.clone()
        bad[place] = spoiled
        assert is_finite(bad) is False


@pytest.mark.parametrize("dtype", REAL)
def test_numbers_whose_sum_is_beyond_the_format_are_finite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert not torch.full((1000,), largest, dtype=dtype).sum().isfinite()
    assert is_finite(torch.full((1000,), largest, dtype=dtype)) is True
    assert is_finite(torch.tensor([largest, -largest] * 500, dtype=dtype)) is True
    assert is_finite(torch.tensor([largest] * 999 + [NAN], dtype=dtype)) is False


@pytest.mark.parametrize(("dtype", "bad"), [(dtype, bad) for dtype, kinds in EIGHT_BITS.items() for bad in kinds])
def test_formats_of_8_bits(dtype: torch.dtype, bad: float) -> None:
    assert is_finite(torch.tensor([1.0, -2.0]).to(dtype)) is True
    assert is_finite(torch.tensor([1.0, bad]).to(dtype)) is False


KINDS = {
    "empty": (torch.empty(0), True),
    "integers": (torch.tensor([2**62, 1]), True),
    "booleans": (torch.tensor([True]), True),
    "scalar": (torch.tensor(NAN), False),
    "imaginary part": (torch.tensor([1 + 1j, complex(0, INF)]), False),
    "complex": (torch.tensor([1 + 1j]), True),
    "lazy conjugate": (torch.tensor([complex(0, INF)]).conj(), False),
    "transposed": (torch.tensor([[1.0, INF], [2.0, 3.0]]).t(), False),
    "every second": (torch.tensor([1.0, INF, 2.0, NAN])[::2], True),
    "sparse": (torch.tensor([[0.0, 0.0], [0.0, NAN]]).to_sparse(), False),
    "finite sparse": (torch.eye(2).to_sparse(), True),
    "sparse rows": (sparse_rows(torch.tensor([[0.0, 0.0], [0.0, NAN]])), False),
    "with a gradient": (torch.tensor([NAN], requires_grad=True), False),
    "meta": (torch.ones(2, device="meta"), None),
    "nested": (quietly(lambda: torch.nested.nested_tensor([torch.tensor([NAN])])), None),
    "quantized": (quietly(lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_tensors(kind: str) -> None:
    tensor, expected = KINDS[kind]
    assert is_finite(tensor) is expected


def test_memory_that_was_given_back_is_not_read() -> None:
    freed = torch.full((1000,), NAN)
    freed.untyped_storage().resize_(0)
    assert is_finite(freed) is None
    assert non_finite_counts(freed) == (0, 0, 0)
    assert non_finite_samples(freed) == []


def test_what_reaches_beyond_its_memory_is_not_read() -> None:
    numbers = torch.full((4, 4), NAN)
    shown = {"whole": numbers, "start": numbers[0], "end": numbers[3:, 1:], "turned": numbers.T[:2]}
    numbers.untyped_storage().resize_(7 * 4)
    assert [name for name, tensor in shown.items() if is_allocated(tensor)] == ["start"]
    assert {name: is_finite(tensor) for name, tensor in shown.items()} == {
        "whole": None,
        "start": False,
        "end": None,
        "turned": None,
    }
    for tensor in (numbers[:0], torch.ones(3).expand(2, 3), torch.ones(2).to_sparse(), torch.ones(2, device="meta")):
        assert is_allocated(tensor)


def test_a_local_part_counts() -> None:
    class Distributed:
        """What a DTensor is to us: something that has a local part."""

        def __init__(self, local: Tensor) -> None:
            self.local = local

        def __getattr__(self, name: str) -> object:
            return getattr(self.local, name)

        def to_local(self) -> Tensor:
            return self.local

    assert is_finite(Distributed(torch.tensor([NAN]))) is False  # type: ignore[arg-type]
    assert is_finite(Distributed(torch.tensor([1.0]))) is True  # type: ignore[arg-type]


def test_what_raises_cannot_be_looked_at_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Refuses(Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(function, "__name__", "") in ("sum", "aminmax"):
                raise ValueError("not here")
            return super().__torch_function__(function, types, args, kwargs or {})

    tensor = torch.ones(2).as_subclass(Refuses)
    assert [is_finite(tensor), is_finite(tensor)] == [None, None]
    (message,) = caplog.messages
    assert "A Refuses of torch.float32 cannot be looked at (ValueError: not here)" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kinds", [set(each) for n in range(4) for each in itertools.combinations(Kind, n)])
def test_all_kinds_are_told_apart(kinds: set[Kind], dtype: torch.dtype) -> None:
    values = [1.0, *(float(kind.value) for kind in kinds), torch.finfo(dtype).max, torch.finfo(dtype).max]
    tensor = torch.tensor(values, dtype=dtype)
    assert kinds_in(tensor) == kinds
    assert kinds_in(-tensor.flip(0)) == {
        {Kind.inf: Kind.negative_inf, Kind.negative_inf: Kind.inf}.get(kind, kind) for kind in kinds
    }


def test_all_kinds_of_tensors() -> None:
    spoiled = torch.tensor([[1.0, -INF], [0.0, NAN]])
    both = {Kind.nan, Kind.negative_inf}
    assert kinds_in(spoiled.to_sparse()) == both
    assert kinds_in(torch.complex(torch.ones(2), spoiled[0])) == {Kind.negative_inf}
    assert kinds_in(spoiled.to(torch.float8_e5m2)) == both
    assert kinds_in(spoiled.T[:, :1]) == {Kind.negative_inf}
    assert kinds_in(torch.nn.Parameter(spoiled)) == both
    assert kinds_in(spoiled[:0]) == set()
    assert kinds_in(spoiled.to("meta")) is None


@pytest.mark.parametrize("dtype", [*REAL, torch.float8_e5m2])
def test_counts_agree_with_plain_python(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    numbers = [[1.0, NAN, INF, -INF][i] for i in torch.randint(4, (101,)).tolist()]
    expected = (sum(map(math.isnan, numbers)), numbers.count(INF), numbers.count(-INF))
    assert non_finite_counts(torch.tensor(numbers).to(dtype)) == expected
    assert non_finite_counts(torch.ones(3, dtype=dtype)) == (0, 0, 0)


def test_both_parts_of_a_complex_number_count() -> None:
    assert non_finite_counts(torch.tensor([complex(NAN, -INF), complex(INF, 1)])) == (1, 1, 1)


BATCH = torch.ones(20, 3, 2)
BATCH[[2, 5, 11], [0, 1, 2], 1] = torch.tensor([NAN, INF, -INF])


def test_samples_are_indices_along_dimension_0() -> None:
    assert non_finite_samples(BATCH) == [2, 5, 11]
    assert non_finite_samples(BATCH, limit=2) == [2, 5]
    assert non_finite_samples(BATCH[:, 0, 1]) == [2]
    assert non_finite_samples(BATCH.to(torch.complex64)) == [2, 5, 11]
    assert non_finite_samples(BATCH.to(torch.float8_e5m2)) == [2, 5, 11]
    assert non_finite_samples(torch.ones(4)) == []
    assert non_finite_samples(torch.tensor(NAN)) == []
    assert non_finite_samples(torch.tensor([1, 2])) == []


def test_samples_of_a_sparse_tensor_are_its_rows() -> None:
    dense = torch.tensor([[0.0, 0.0], [0.0, 1.0], [NAN, INF], [0.0, -INF]])
    assert non_finite_samples(dense.to_sparse()) == [2, 3]
    assert non_finite_samples(dense.to_sparse(1)) == [2, 3]
    assert non_finite_samples(sparse_rows(dense)) == [2, 3]
