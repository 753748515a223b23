"""May this optimizer step? Its gradients, and one answer for all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from mp_plugin.numerics.grad_values import settled

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all ranks together know about the gradients of one optimizer."""

    overflowed: bool
    """Some gradient on some rank holds a NaN or an Inf."""
    has_gradients: bool
    """Some rank has a gradient at all."""
    amax: float = 0.0
    """Largest magnitude of all true gradients, if somebody asked for it; means nothing after an overflow."""
    norm: float = 0.0
    """Norm of one rank's gradients before they are unscaled, if somebody asked for it; likewise."""
    loss_is_finite: bool = True
    """Whether every loss of every rank is finite, if somebody asked for it."""

    def __or__(self, other: "Verdict") -> "Verdict":
        """What is known about the gradients of both."""
        return Verdict(
            overflowed=self.overflowed or other.overflowed,
            has_gradients=self.has_gradients or other.has_gradients,
            amax=max(self.amax, other.amax),
            norm=max(self.norm, other.norm),
            loss_is_finite=self.loss_is_finite and other.loss_is_finite,
        )


NOTHING = Verdict(overflowed=False, has_gradients=False)


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """Return the gradients an optimizer would use, in the order of its parameters, with all sums done.

    A parameter without a gradient, frozen or unused this step, contributes nothing.
    """
    found = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is None:
                continue
            if type(grad) is not Tensor or grad.is_sparse:  # most are neither, and there may be ten thousand
                whole = settled(grad)
                if whole is not grad:
                    parameter.grad = grad = whole
            found.append(grad)
    return found


def agree(found_inf: Tensor, *, has_gradients: bool, amax: Tensor | None = None, norm: Tensor | None = None) -> Verdict:
    """Combine what every rank found into one verdict: one all-reduce of five numbers, one host sync (none on the CPU).

    Every rank calls this, or `ask`, at the same step or none does. Without other ranks it only reads the numbers.

    Args:
        found_inf: one element, above 0 if a gradient of this rank is not finite.
        has_gradients: whether this rank has a gradient at all.
        amax: one element, the largest magnitude of this rank's gradients; None on all ranks if nobody needs it.
        norm: one element, the norm of this rank's gradients as they are; likewise.
    """
    known = [found_inf, *(each for each in (amax, norm) if each is not None)]
    if has_other_ranks() or any(each.device.type != "cpu" for each in known):
        return read_answers(ask(found_inf, has_gradients=has_gradients, amax=amax, norm=norm))
    # What is on the host is read where it lies.
    largest, total = (0.0 if each is None else float(each.numpy()) for each in (amax, norm))
    return Verdict(bool(found_inf.numpy()), has_gradients, largest, total)


NUM_ANSWERS = 5
"""Numbers that ranks exchange about a step."""


def ask(
    found_inf: Tensor,
    *,
    has_gradients: bool,
    amax: Tensor | None = None,
    norm: Tensor | None = None,
    losses: Sequence[Tensor] = (),
) -> Tensor:
    """Ask all ranks for what `agree` tells, and leave their answers on the device. No host sync.

    Args:
        found_inf: as for `agree`, like the others.
        has_gradients: whether this rank has any.
        amax: their largest magnitude.
        norm: their norm.
        losses: that they came from; whether all are finite is asked too.

    Returns:
        fp32, `[5]`: whether any rank has gradients, and found a NaN or an Inf, the largest magnitude and norm, and
        whether a loss is not finite.
    """
    found = found_inf.reshape(1).float()
    numbers = [torch.full_like(found, float(has_gradients)), found]
    numbers += [torch.zeros_like(found) if each is None else each.reshape(1).to(found) for each in (amax, norm)]
    lost = [(~loss.isfinite().all()).reshape(1).to(found) for loss in losses]
    numbers.append(torch.stack(lost).amax(dim=0) if lost else torch.zeros_like(found))
    answers = torch.cat(numbers)
    if has_other_ranks():
        answers = answers.to(meeting_place(answers.device, dist.get_backend_config()))
        dist.all_reduce(answers, op=dist.ReduceOp.MAX)
    return answers


def read_answers(answers: Tensor) -> Verdict:
    """Return the verdict that `ask` asked for; waits for it."""
    has_gradients, overflowed, amax, norm, lost = _read(answers)
    return Verdict(bool(overflowed), bool(has_gradients), amax, norm, not lost)


def agree_each(answers: Sequence[bool], optimizers: Sequence[Optimizer]) -> list[bool]:
    """Return for each optimizer whether any rank says yes: one all-reduce for all, if there are other ranks."""
    if not has_other_ranks() or not optimizers:
        return list(answers)
    home = home_device(optimizers[0])
    votes = torch.tensor([float(answer) for answer in answers], device=meeting_place(home, dist.get_backend_config()))
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in _read(votes)]


def gather(answer: Answer) -> list[Answer]:
    """Return every rank's answer, in order; all ranks together. It pickles and syncs: for incidents only."""
    if not has_other_ranks():
        return [answer]
    answers = [answer] * dist.get_world_size()
    dist.all_gather_object(answers, answer)
    return answers


def has_other_ranks() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _read(values: Tensor) -> list[float]:
    # What is on the host already is read where it lies; `tolist` waits for the device, once for all numbers.
    values = values.reshape(-1)
    return (values.numpy() if values.device.type == "cpu" else values).tolist()


def home_device(optimizer: Optimizer) -> torch.device:
    """Return the device of an optimizer's first parameter: where its answer lives when it has no gradients."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            return parameter.device  # type: ignore[no-any-return]  # param_groups is untyped in torch
    return torch.device("cpu")


def meeting_place(device: torch.device, backends: str) -> torch.device:
    """Return the device itself if the ranks can exchange tensors there, else the device type where they can.

    With offloaded parameters gradients lie on the CPU, of which NCCL knows nothing.

    Args:
        device: where a tensor is.
        backends: what `torch.distributed.get_backend_config` says, such as `cpu:gloo,cuda:nccl`.

    Example:
        >>> meeting_place(torch.device("cpu"), "cuda:nccl")
        device(type='cuda')
    """
    device_types = [pair.partition(":")[0] for pair in backends.split(",")]
    return device if device.type in device_types else torch.device(device_types[0])
