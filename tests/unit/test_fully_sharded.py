import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import Linear, Module, Sequential

from mp_plugin.fully_sharded import lent_parameters, reset, reshard, units
from tests.helpers.ranks import run_on_ranks

pytestmark = pytest.mark.xdist_group("ranks")


class Breaks(Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.is_broken = Linear(2, 2), False

    def forward(self, x: Any) -> Any:
        if self.is_broken:
            raise RuntimeError("broken")
        return self.inner(x)


def is_sharded(net: Module) -> bool:
    return all(hasattr(parameter, "placements") for parameter in net.parameters())


def try_on_a_rank(out: Path) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    plain = Linear(2, 2)
    net = Sequential(Linear(2, 2), Breaks(), Linear(2, 2))
    x = torch.ones(3, 2)
    expected = net(x).detach()
    fully_shard(net[1])
    fully_shard(net)
    everything = Sequential(net, plain)
    assert list(units(everything)) == [net, net[1]]
    assert list(lent_parameters(plain)) == []
    assert [name for name, _ in lent_parameters(everything)] == [name for name, _ in everything.named_parameters()][:6]

    loss = net(x)
    torch.testing.assert_close(loss, expected)
    assert not is_sharded(net)
    reshard(everything)
    assert is_sharded(net)
    assert isinstance(net, FSDPModule)

    net(x).sum().backward()
    gradient = net[0].weight.grad.full_tensor()
    net.zero_grad()
    net[1].is_broken = True
    with pytest.raises(RuntimeError, match="broken"):
        net(x)
    net[1].is_broken = False
    reset(everything)
    assert is_sharded(net)
    again = net(x)
    torch.testing.assert_close(again, expected)
    again.sum().backward()
    torch.testing.assert_close(net[0].weight.grad.full_tensor(), gradient)
    assert is_sharded(net)
    reset(plain)
    reset(everything)
    dist.destroy_process_group()
    (out / os.environ["RANK"]).touch()


@pytest.mark.parametrize("world_size", [1, 2])
def test_units_are_as_between_two_steps(tmp_path: Path, world_size: int) -> None:
    run_on_ranks(try_on_a_rank, tmp_path, world_size=world_size)
    assert len(list(tmp_path.iterdir())) == world_size


def test_before_the_first_forward_pass_and_without_units_there_is_nothing_to_do() -> None:
    net = Linear(2, 2)
    reshard(net)
    reset(net)
    assert list(units(net)) == []
