import pytest
import torch
from torch import Tensor

from mp_plugin.numerics.storage import storage_under, strided


def test_a_view_shares_the_memory_and_a_copy_does_not() -> None:
    numbers = torch.ones(4)
    memory = storage_under(numbers)
    assert memory is not None
    others = [storage_under(each) for each in (numbers[1:], numbers.clone())]
    assert [each is not None and each._cdata == memory._cdata for each in others] == [True, False]


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_the_numbers_of_a_sparse_tensor_are_strided(layout: torch.layout) -> None:
    sparse = torch.tensor([[0.0, 2.0], [3.0, 0.0]]).to_sparse(layout=layout)
    assert strided(sparse).tolist() == [2.0, 3.0]
    memory = storage_under(sparse)
    assert memory is not None
    assert memory.nbytes() == 2 * 4


def test_what_only_looks_like_a_tensor_has_no_memory() -> None:
    class Posing(Tensor):
        def untyped_storage(self) -> torch.UntypedStorage:
            raise NotImplementedError

    assert storage_under(torch.ones(2).as_subclass(Posing)) is None
