"""On a GPU: a whole healthy step, from the forward pass to the optimizer, in one CUDA graph."""

import pytest
import torch
from torch import nn

from mp_plugin import LossScaling
from mp_plugin.scaling.capturable import CapturableStep
from mp_plugin.scaling.scaler import LossScaler

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="captures CUDA graphs"),
    # Of the steps before the capture, and of those that the replays are compared with.
    pytest.mark.filterwarnings("ignore:This instance was constructed with capturable=True:UserWarning"),
]

STEPS, WARM_UP = 20, 3


def layers() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).cuda()


def batches() -> torch.Tensor:
    return torch.randn(WARM_UP + STEPS, 16, 64, generator=torch.Generator().manual_seed(2)).cuda()


class Training:
    def __init__(self) -> None:
        self.net = layers()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.01, fused=True, capturable=True)
        self.capturable = CapturableStep(self.optimizer, LossScaler(LossScaling(init_scale=2.0**10)), max_norm=0.5)
        self.batch = torch.empty(16, 64, device="cuda")

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        with torch.autocast("cuda", torch.float16):
            loss = self.net(self.batch).float().square().mean()
        self.capturable.scale(loss).backward()
        self.capturable.step()


def train(*, captured: bool, spoiled: int | None = None) -> Training:
    training = Training()
    inputs = batches()
    if spoiled is not None:
        inputs[spoiled] = float("inf")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for batch in inputs[:WARM_UP]:
            training.batch.copy_(batch)
            training.step()
            training.capturable.update()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    if captured:
        with torch.cuda.graph(graph):
            training.step()
    for batch in inputs[WARM_UP:]:
        training.batch.copy_(batch)
        if captured:
            graph.replay()
        else:
            training.step()
        training.capturable.update()
    training.capturable.finish()
    return training


@pytest.mark.parametrize("spoiled", [None, WARM_UP + 5])
def test_replaying_is_training(spoiled: int | None) -> None:
    replayed, stepped = train(captured=True, spoiled=spoiled), train(captured=False, spoiled=spoiled)
    skipped = int(spoiled is not None)
    for training in (replayed, stepped):
        assert training.capturable.effective_step == WARM_UP + STEPS - skipped
        assert training.capturable.skipped_steps == skipped
    for ours, theirs in zip(replayed.net.parameters(), stepped.net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
