"""What the kernel's bandwidth is computed from: the same gradients for all, and the bytes that each has to move."""

import statistics

import pytest
import torch

SHAPES = [(3, 5), (), (1,), (0,), (2**20 + 3,)]
NUM_VALUES = 15 + 1 + 1 + 2**20 + 3


@pytest.fixture
def bench():
    import kernel_bandwidth

    return kernel_bandwidth


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_all_calls_leave_the_gradients_as_they_are(bench, dtype):
    gradients = bench.make_gradients(SHAPES, dtype, torch.device("cpu"))
    assert [tuple(gradient.shape) for gradient in gradients] == SHAPES
    before = [gradient.clone() for gradient in gradients]
    calls = bench.calls_on([gradient for gradient in gradients if gradient.numel()])
    for call, _ in calls.values():
        call()
    torch.testing.assert_close(gradients, before, rtol=0, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[-1].count_nonzero() > 0.99 * gradients[-1].numel()


def test_a_copy_and_an_unscaling_move_twice_what_a_read_moves(bench):
    calls = bench.calls_on(bench.make_gradients(SHAPES[:3] + SHAPES[4:], torch.bfloat16, torch.device("cpu")))
    moved = {name: num_bytes for name, (_, num_bytes) in calls.items()}
    read = 2 * NUM_VALUES
    assert moved == {
        "copy": 2 * read,
        "grad_stats": read,
        "grad_stats, counting flushed": read,
        "check and unscale": 2 * read,
        "norm 2": read,
        "norm inf": read,
    }


def test_a_share_is_a_quotient_of_bandwidths_within_a_round(bench):
    class Stopwatch:
        """A second for the first call, two for the second, and so on."""

        is_cuda = False
        calls = 0

        def host_seconds(self, call):
            return 0.0

        def seconds(self, call, host_seconds):
            self.calls += 1
            return float(self.calls)

    found = bench.measure(bench.make_gradients([(64,)], torch.float32, torch.device("cpu")), Stopwatch(), rounds=3)
    copy, ours = found["seconds"]["copy"], found["seconds"]["grad_stats"]
    assert sorted(second for seconds in found["seconds"].values() for second in seconds) == list(range(7, 25))
    shares = [0.5 * theirs / mine for theirs, mine in zip(copy, ours, strict=True)]
    assert found["share_of_copy"]["grad_stats"]["median"] == pytest.approx(statistics.median(shares))
    times = [theirs / mine for theirs, mine in zip(found["seconds"]["norm 2"], ours, strict=True)]
    assert found["time_beside_grad_stats"]["norm 2"]["median"] == pytest.approx(statistics.median(times))


def test_every_network_and_both_extremes_are_measured(bench):
    on_gpu, on_cpu = (set(bench.cases(is_quick=False, is_cuda=is_cuda)) for is_cuda in (True, False))
    assert on_gpu == {"GPT-2 small", "GPT-2 XL", "ResNet-50", "ViT-B/16", "many tiny", "one huge"}
    assert on_cpu == on_gpu - {"GPT-2 XL"}
