"""A step that a CUDA graph can hold: loss scale, check, clipping and skip on the device alone."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from mp_plugin.errors import UnsupportedError
from mp_plugin.numerics.host_copy import HostCopy
from mp_plugin.scaling.folding import are_plain, can_skip, is_foldable, may_fold
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.step_plan import Route, StepPlan
from mp_plugin.scaling.unattended import UnattendedGradients
from mp_plugin.scaling.verdict import NUM_ANSWERS, gradients, home_device, read_answers


class CapturableStep:
    """Scale losses and step an optimizer without a word from the host, so that a CUDA graph can replay both.

    What the host decides, the next loss scale, is written to the device between two replays, by `update`. It learns of
    a step when the next one has been launched, so that it never waits: the scale follows one step late.

    Args:
        optimizer: one of torch's fused ones, with fp32 gradients on one device.
        scaler: moves the scale; None without loss scaling.
        max_norm: what the norm of the gradients is clipped to; None without clipping.

    Raises:
        UnsupportedError: for another optimizer.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, fused=True)
        >>> capturable = CapturableStep(optimizer, LossScaler(), max_norm=1.0)
        >>> for _ in range(3):  # on CUDA the first three lines are captured once, and replayed
        ...     optimizer.zero_grad(set_to_none=False)
        ...     capturable.scale(layer(torch.ones(2)).sum()).backward()
        ...     capturable.step()
        ...     capturable.update()
        >>> capturable.finish()
        >>> capturable.effective_step, capturable.skipped_steps
        (3, 0)
    """

    def __init__(
        self, optimizer: Optimizer, scaler: LossScaler | None = None, *, max_norm: float | None = None
    ) -> None:
        if not is_foldable(optimizer):
            raise UnsupportedError(
                f"A captured step cannot be made by {type(optimizer).__name__} as it is; accepted: one of torch's "
                "optimizers with fused=True, without hooks before its step."
            )
        self._optimizer, self._scaler = optimizer, scaler
        self._plan = StepPlan(route=Route.folded, max_norm=max_norm, is_exact=False)
        device = home_device(optimizer)
        # Where they are, for good: a graph knows them by their addresses.
        scale = 1.0 if scaler is None else scaler.get_scale()
        self._scale = torch.full((), scale, device=device, dtype=torch.float32)
        self._answers = torch.zeros(NUM_ANSWERS, device=device, dtype=torch.float32)
        self._newest: tuple[HostCopy, float] | None = None
        self.effective_step = 0
        """Steps that changed a weight, as far as the host knows."""
        self.skipped_steps = 0
        """Steps that were not taken because a gradient was not finite, likewise."""

    def scale(self, loss: Tensor) -> Tensor:
        """Multiply a loss by the scale, in fp32 if it came in half precision. To be captured; no sync."""
        half = loss.dtype in (torch.float16, torch.bfloat16)
        return (loss.float() if half else loss) * self._scale

    def step(self) -> None:
        """Step, or skip if a gradient on any rank is not finite. To be captured; no sync.

        SGD with momentum has to make a step before the capture: until then it cannot skip on the device.

        Raises:
            UnsupportedError: for gradients that are not plain, dense and fp32, all on one device.
        """
        self._check(gradients(self._optimizer))
        unattended = UnattendedGradients(self._optimizer, self._plan, self._scaler, scale=self._scale)
        self._answers.copy_(unattended.ask())
        if not can_skip(self._optimizer) and read_answers(self._answers).overflowed:
            return
        with unattended.folding(None, self._answers[1]):
            self._optimizer.step()

    def update(self) -> None:
        """Call after each step or replay: begin to read its verdict, and take up that of the step before."""
        scale = 1.0 if self._scaler is None else self._scaler.get_scale()  # of the newest step
        self.finish()
        self._newest = HostCopy(self._answers.clone()), scale

    def finish(self) -> None:
        """Take up the verdict of the newest step; waits for it."""
        if self._newest is None:
            return
        (copy, scale), self._newest = self._newest, None
        verdict = read_answers(copy.read())
        if verdict.has_gradients:
            self.effective_step += not verdict.overflowed
            self.skipped_steps += verdict.overflowed
        if self._scaler is not None:
            self._scaler.learn_late(verdict, scale=scale)
            self._scaler.update()
            self._scale.fill_(self._scaler.get_scale())

    def _check(self, grads: Sequence[Tensor]) -> None:
        if not (are_plain(grads) and may_fold(grads)):
            kinds = sorted({f"{type(grad).__name__} {grad.dtype} {grad.layout} {grad.device}" for grad in grads})
            raise UnsupportedError(
                f"A captured step cannot use gradients of {', '.join(kinds)}; accepted: dense fp32 ones on one device."
            )
