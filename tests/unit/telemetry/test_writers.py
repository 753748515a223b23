import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mp_plugin.numerics.finiteness import Kind
from mp_plugin.telemetry.writers import Writers, storage_of, view_of

NAN, INF = {Kind.nan}, {Kind.inf}


def spoil(writers: Writers, tensor: Tensor, step: int, value: float = float("nan")) -> None:
    tensor.fill_(value)
    kind = {"nan": Kind.nan, "inf": Kind.inf, "-inf": Kind.negative_inf}[str(value)]
    writers.note(tensor, step, frozenset({kind}))


BASE = (4, 6, 5)
VIEWS = {
    "all": lambda x: x,
    "row": lambda x: x[2],
    "rows": lambda x: x[1:3],
    "column": lambda x: x[:, 3],
    "last": lambda x: x[..., -1],
    "steps": lambda x: x[::2, 1::3],
    "block": lambda x: x[1:3, 2:5, 1:4],
    "transposed": lambda x: x.permute(2, 0, 1)[1:3, 1],
    "expanded": lambda x: x[0, 0].expand(7, 5),
    "element": lambda x: x[3, 5, 4],
    "diagonal": lambda x: x.diagonal(dim1=0, dim2=1),
    "empty": lambda x: x[:0],
    "one row of many": lambda x: x[1:2],
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_knows_its_bytes(name: str) -> None:
    """The oracle: write to the view, and see what of the memory has changed."""
    for dtype in (torch.float32, torch.float16):
        base = torch.zeros(BASE, dtype=dtype)
        view = view_of(VIEWS[name](base))
        assert view is not None
        VIEWS[name](base).fill_(1) if name != "expanded" else base[0, 0].fill_(1)
        changed = [bool(value) for value in base.flatten()]
        assert [view.holds(place * base.itemsize) for place in range(base.numel())] == changed
        assert [view.holds(place * base.itemsize + 1) for place in range(base.numel())] == changed


def test_the_last_writer_of_each_part() -> None:
    writers, x = Writers(), torch.zeros(4, 6)
    spoil(writers, x[:, :3], 1)
    spoil(writers, x[1], 2)
    spoil(writers, x[1, :2], 3)
    for part, step in ((x[0], 1), (x[1], 3), (x[1, 2:], 2), (x[1:, 2], 2), (x.T[0], 1), (x[2:], 1), (x, 1)):
        assert writers.writer(part, Kind.nan) == step


def test_each_kind_has_its_writer() -> None:
    writers, x = Writers(), torch.zeros(3)
    spoil(writers, x[0], 1, float("-inf"))
    spoil(writers, x[1], 2, float("inf"))
    spoil(writers, x[2], 3, float("nan"))
    assert [writers.writer(x, kind) for kind in (Kind.negative_inf, Kind.inf, Kind.nan)] == [1, 2, 3]


def test_what_was_there_before_a_write_is_looked_up_by_its_copy() -> None:
    writers, x = Writers(), torch.zeros(3)
    spoil(writers, x[0], 1)
    spoil(writers, x[1], 2)
    before = x.clone()
    x.zero_()
    assert writers.writer(x, Kind.nan, before) == 1
    before[0] = 0
    assert writers.writer(x, Kind.nan, before) == 2


def test_what_shares_memory_shares_writers() -> None:
    writers, x = Writers(), torch.zeros(4, requires_grad=True)
    with torch.no_grad():
        spoil(writers, x, 1)
    for other in (x.detach(), x.view(2, 2), x.data, x[1:], torch.view_as_complex(x.detach().view(2, 2))):
        assert writers.writer(other, Kind.nan) == 1
    assert writers.writer(x.clone(), Kind.nan) is None


def test_memory_that_is_used_again_is_not_taken_for_what_it_was() -> None:
    writers, identities = Writers(), set()
    for step in range(200):
        tensor = torch.zeros(3)
        assert writers.writer(tensor, Kind.nan) is None
        identities.add(storage_of(tensor))
        spoil(writers, tensor, step)
        del tensor
    assert len(identities) == 200  # the weak reference keeps an identity from being given twice


def test_dead_tensors_are_not_kept() -> None:
    writers, tensor = Writers(), torch.zeros(3)
    writers.note(tensor, 1, frozenset(NAN))
    reference = StorageWeakRef(tensor.untyped_storage())
    del tensor
    assert reference.expired()


def test_contents_are_known_without_a_read_until_somebody_writes() -> None:
    writers, x = Writers(), torch.zeros(4)
    assert writers.kinds(x) == set()
    spoil(writers, x[:2], 1)
    assert (writers.kinds(x), writers.kinds(x[:2]), writers.kinds(x[2:])) == (NAN, NAN, set())
    x.numpy()[:] = 0  # behind everybody's back
    assert (writers.kinds(x), writers.kinds(x[:2])) == (NAN, NAN)
    writers.touched(x[3:])
    assert (writers.kinds(x), writers.kinds(x[:2])) == (set(), set())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_sparse_tensors_are_known_by_their_values() -> None:
    writers = Writers()
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 2]]), torch.tensor([1.0, float("nan")]), (4,), check_invariants=False
    )
    writers.note(sparse, 3, frozenset(NAN))
    assert writers.kinds(sparse) == NAN
    assert writers.writer(sparse, Kind.nan) == 3
    assert writers.writer(sparse._values(), Kind.nan) == 3
    assert writers.writer(torch.eye(2).to_sparse_csr(), Kind.nan) is None


def test_what_has_no_memory_has_no_writer() -> None:
    nested = torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged)
    for tensor in (torch.ones(1, device="meta"), nested):
        writers = Writers()
        writers.note(tensor, 1, frozenset(INF))
        assert writers.kinds(torch.ones(1)) == set()
