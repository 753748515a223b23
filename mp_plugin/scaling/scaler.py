"""A loss scaler in the shape of `torch.amp.GradScaler`: state and calls, no decisions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mp_plugin.config import LossScaling, Policy
from mp_plugin.errors import ConfigError, UnsupportedError
from mp_plugin.numerics.grad_totals import all_finite, grad_totals
from mp_plugin.numerics.grad_values import local_values
from mp_plugin.numerics.unscale import unscale_
from mp_plugin.scaling.saved_scale import pack_scale, unpack_scale
from mp_plugin.scaling.schedule import ScaleState, advance, initial_state
from mp_plugin.scaling.verdict import NOTHING, Verdict, agree, agree_each, gradients, home_device
from mp_plugin.scaling.waiting import WaitingGradients, snapshot


class LossScaler:
    """Scale losses, unscale gradients, skip the steps that overflowed, and let the schedule move the scale.

    Unlike `torch.amp.GradScaler` the scale has a floor and a ceiling, and a step is skipped on every rank when any rank
    overflowed, with fused optimizers too.

    Args:
        config: how the scale moves; None for the defaults.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> scaler = LossScaler(LossScaling(init_scale=1024))
        >>> scaler.scale(layer(torch.ones(2)).sum()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> scaler.get_scale()
        1024.0
    """

    def __init__(self, config: LossScaling | None = None) -> None:
        self.config = config or LossScaling()
        self.restart()

    def restart(self) -> None:
        """Return to the first scale and forget every step."""
        self.state = initial_state(self.config)
        # From unscale_ to step: the verdict on each optimizer's gradients, by the optimizer's id.
        self._verdicts: dict[int, Verdict] = {}
        # What was learned of the step before, and its scale; the schedule does not know it yet.
        self._late, self._late_scale = NOTHING, 1.0
        # From step to update: what is known about the gradients of this scale.
        self._stepped: Verdict | None = None
        self._anything_used = False  # gradients of this scale, be it without a word to the schedule
        self._waiting = WaitingGradients()
        # Gradients, by id, that are unscaled while another optimizer waits, which may be one of the same weights. They
        # live until a backward pass makes others.
        self._shared: set[int] = set()

    def is_enabled(self) -> bool:
        """Whether losses are scaled: always, as for `GradScaler(enabled=True)`."""
        return True

    def get_scale(self) -> float:
        """Return the loss scale; a number held on the host, so no sync."""
        return self.state.scale

    def scale(self, outputs: Tensor) -> Tensor:
        """Multiply a loss by the scale, in fp32 if it came in half precision. No sync."""
        if outputs.dtype in (torch.float16, torch.bfloat16):
            # An fp16 loss of 2 times 2**15 is already infinite.
            outputs = outputs.float()
        return outputs * self.state.scale

    def unscale_(self, optimizer: Optimizer) -> Verdict:
        """Divide the gradients of one optimizer by the scale, in place, once per step.

        One read and write of the gradients, and one read more for a predictive scale; one all-reduce if there are other
        ranks, one host sync.

        Raises:
            RuntimeError: when called twice without a `step` in between.
            ConfigError: for fp16 gradients: their fp32 masters are what a loss scale is for.
        """
        if self.is_unscaled(optimizer):
            raise RuntimeError("unscale_() was already called on this optimizer since its last step().")
        grads = gradients(optimizer)
        if any(grad.dtype is torch.float16 for grad in grads):
            raise ConfigError(
                "A loss scale needs gradients in fp32 or bf16, and this optimizer has fp16 ones; "
                "accepted: fp32 parameters with precision '16-mixed', or precision '16-true' without scaling."
            )
        scaled = [grad for grad in grads if id(grad) not in self._shared]
        found_inf = unscale_(scaled, self.state.scale).to(home_device(optimizer))
        if len(scaled) < len(grads):
            found_inf = torch.maximum(found_inf, (~all_finite(grads)).to(found_inf))
        if self._waiting.besides(optimizer):
            self._shared.update(map(id, grads))
        amax = grad_totals(grads, amax=True).amax if self.config.policy is Policy.predictive else None
        verdict = agree(found_inf, has_gradients=bool(grads), amax=amax)
        self._verdicts[id(optimizer)] = verdict
        self._waiting.note_again(optimizer)
        return verdict

    def is_unscaled(self, optimizer: Optimizer) -> bool:
        """Whether the gradients of this optimizer were unscaled since its last step."""
        return id(optimizer) in self._verdicts

    def verdict(self, optimizer: Optimizer) -> Verdict:
        """Return the verdict on this optimizer's gradients, unscaling them first if nobody has."""
        return self._verdicts.get(id(optimizer)) or self.unscale_(optimizer)

    def take(self, optimizer: Optimizer, verdict: Verdict) -> None:
        """Take over a verdict on gradients that are still scaled; whoever steps with them unscales them."""
        self._verdicts[id(optimizer)] = verdict

    def learn_late(self, verdict: Verdict, *, scale: float) -> None:
        """Take over the verdict on a step that is over, whose losses were multiplied by `scale`.

        The schedule learns of it with the next `update`: until then gradients made under the present scale are in use.
        """
        self._late, self._late_scale = verdict, scale

    @contextmanager
    def watch(self, optimizers: Sequence[Optimizer]) -> Iterator[None]:
        """Find out whose gradients the backward pass in this block makes, so that the scale can wait for their steps.

        Walks over the parameters twice; no sync.

        Raises:
            UnsupportedError: when the pass adds scaled gradients to unscaled ones.
        """
        unscaled = [optimizer for optimizer in optimizers if self.is_unscaled(optimizer)]
        waiting = self._waiting.among(unscaled)
        for optimizer in unscaled:
            if optimizer not in waiting:
                self._close(optimizer)  # its gradients were zeroed instead of used
        before = [snapshot(optimizer) for optimizer in optimizers]
        yield
        for optimizer, known in zip(optimizers, before, strict=True):
            now = snapshot(optimizer)
            if now == known:
                continue
            self._shared -= {identity for identity, _ in set(now) - set(known)}
            if self.is_unscaled(optimizer):
                raise UnsupportedError(
                    "backward() added scaled gradients to those that clip_gradients() has unscaled already; "
                    "accepted: all backward passes of a step first, then clip_gradients(), then step()."
                )
            self._waiting.note(optimizer)

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Step the optimizer unless its gradients overflowed, unscaling them first if nobody has.

        Returns:
            What the optimizer returned; None for a skipped step.
        """
        overflowed = self.verdict(optimizer).overflowed
        # An optimizer that calls its closure again within this step brings new gradients, to be unscaled anew.
        self._close(optimizer)
        if overflowed:
            return None
        return optimizer.step(closure, **kwargs) if closure is not None else optimizer.step(**kwargs)

    def discard(self, optimizer: Optimizer) -> None:
        """Drop this optimizer's gradients without a step and without a word to the schedule."""
        del self._verdicts[id(optimizer)]
        self._anything_used = True
        self._waiting.forget(optimizer)

    def state_if_overflowed(self) -> ScaleState:
        """Return the state that an overflow would lead to, without going there."""
        return advance(self.state, overflowed=True, config=self.config)

    def update(self, *, run_again: bool = False) -> None:
        """Let the schedule move the scale, once all optimizers that shared it have stepped. No sync.

        Args:
            run_again: whether the batch overflowed and is run again next.
        """
        self.state = self._next_state(self._late, self._late_scale, run_again=run_again)
        self._forget()

    def update_unless_waiting(self, optimizers: Sequence[Optimizer]) -> bool:
        """Let the schedule move the scale if none of these optimizers holds gradients made under it; all ranks at once.

        After an overflow it moves all the same, and what others hold is rescaled: those that overflow must not skip for
        as long as another collects.

        Returns:
            Whether all gradients were used.
        """
        if not self._anything_used:
            return False
        waiting = self._waiting.among(optimizers)
        if not waiting:
            self.update()
        elif self._may_rescale(waiting):
            before = self.state.scale
            self.update()
            for optimizer in waiting:
                torch._foreach_mul_(list(map(local_values, gradients(optimizer))), self.state.scale / before)
                self._waiting.note(optimizer)
        return not waiting

    def _may_rescale(self, waiting: list[Optimizer]) -> bool:
        if self._stepped is None or not self._stepped.overflowed or any(map(self.is_unscaled, waiting)):
            return False
        # All ranks together: of a shared gradient FSDP may have given one of them no part.
        is_shared = [any(id(grad) in self._shared for grad in gradients(optimizer)) for optimizer in waiting]
        return not any(agree_each(is_shared, waiting))

    def finish(self) -> None:
        """Let the schedule learn of the last steps; gradients that nobody stepped with count no more."""
        self._verdicts.clear()
        self.update()

    def _forget(self) -> None:
        self._verdicts.clear()
        self._stepped, self._late, self._anything_used = None, NOTHING, False
        self._waiting.clear()
        self._shared.clear()

    def _close(self, optimizer: Optimizer) -> None:
        verdict = self._verdicts.pop(id(optimizer))
        self._stepped = verdict if self._stepped is None else self._stepped | verdict
        self._anything_used = True
        self._waiting.forget(optimizer)

    def _next_state(self, late: Verdict, late_scale: float, *, run_again: bool = False) -> ScaleState:
        known = reduce(or_, self._verdicts.values(), self._stepped or NOTHING)
        scale, state = self.state.scale, self.state
        # Room for a higher scale, of which a clean step tells, is refuted by an overflow after it.
        is_refuted = known.overflowed and not late.overflowed and self.config.policy is not Policy.predictive
        if late.has_gradients and not is_refuted:
            state = self._after(late, late_scale, state)
        return self._after(known, scale, state, run_again=run_again) if known.has_gradients else state

    def _after(self, verdict: Verdict, scale: float, state: ScaleState, *, run_again: bool = False) -> ScaleState:
        if verdict.overflowed and scale > state.scale:
            return state  # that scale was too high is known already
        return advance(state, overflowed=verdict.overflowed, config=self.config, amax=verdict.amax, run_again=run_again)

    def state_dict(self, *, late: Verdict | None = None, late_scale: float = 1.0) -> dict[str, Any]:
        """Return plain numbers that `torch.amp.GradScaler` loads too: the state that `update` would lead to.

        Args:
            late: the verdict on a step that is over, as for `learn_late`; None for the one that it has.
            late_scale: what its losses were multiplied by.
        """
        pending = (self._late, self._late_scale) if late is None else (late, late_scale)
        return pack_scale(self._next_state(*pending), self.config)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the scale where a `LossScaler` or a `torch.amp.GradScaler` left it.

        Factors, interval and bounds stay as configured now; a static scale stays too.

        Raises:
            CheckpointError: for a missing, unknown or impossible value; nothing is loaded then.
        """
        self.state = unpack_scale(state_dict, self.config)
        self._late = NOTHING
