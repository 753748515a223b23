"""Let a fused optimizer unscale, clip and skip by itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer


def is_foldable(optimizer: Optimizer) -> bool:
    """Whether an optimizer divides its gradients by `grad_scale` and obeys `found_inf`, before anybody looks at them.

    Those are torch's own fused ones. A subclass with a `step` of its own, a hook before the step or a `step` that was
    replaced might look at gradients that are still scaled. A compiled step is the same step: torch runs fused ones as
    they are.

    Example:
        >>> parameters = [torch.nn.Parameter(torch.ones(2))]
        >>> is_foldable(torch.optim.SGD(parameters, fused=True)), is_foldable(torch.optim.SGD(parameters))
        (True, False)
    """
    step: Any = vars(optimizer).get("step")
    return (
        getattr(optimizer, "_step_supports_amp_scaling", False)
        # A loaded state brings settings of its own, and torch refuses to scale where a group is not fused.
        and all(group.get("fused") for group in optimizer.param_groups)
        and type(optimizer).step.__module__.startswith("torch.optim.")
        and (step is None or _is_torchs_own(step, type(optimizer).step))
        and not optimizer._optimizer_step_pre_hooks
        and not torch_optimizer._global_optimizer_pre_hooks
    )


def _is_torchs_own(step: Any, class_step: Any) -> bool:
    """Whether what an optimizer has instead of its class's step is that one, compiled or counted by a scheduler."""
    step = getattr(step, "_torchdynamo_orig_callable", step)
    if getattr(step, "__func__", None) is class_step:
        return True
    # A scheduler of torch wraps the step to notice it. The mark alone is copied by other wrappers.
    return hasattr(step, "_wrapped_by_lr_sched") and step.__wrapped__ is class_step


def are_plain(grads: Sequence[Tensor]) -> bool:
    """Whether gradients are plain, dense and of a format that can be unscaled: neither sharded, sparse nor fp16."""
    return (
        set(map(type, grads)) <= {Tensor}
        and {grad.layout for grad in grads} <= {torch.strided}
        and {grad.dtype for grad in grads} <= {torch.float32, torch.bfloat16}
    )


def may_fold(grads: Sequence[Tensor], *, divides: bool = True) -> bool:
    """Whether plain gradients are on one device, and fp32 if the optimizer divides them: then it does as we would."""
    devices, dtypes = {grad.device for grad in grads}, {grad.dtype for grad in grads}
    return len(devices) <= 1 and (not divides or dtypes <= {torch.float32})


def can_skip(optimizer: Optimizer) -> bool:
    """Whether an optimizer that is told to skip a step leaves everything as it is.

    Not SGD before its first step with momentum: it makes the buffers there, and fills them in the kernel that a skip
    leaves out.
    """
    return all(
        optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
        for group in optimizer.param_groups
        if group.get("momentum")
        for parameter in group["params"]
        if parameter.grad is not None
    )


@contextmanager
def folding(optimizer: Any, *, grad_scale: Tensor | None, found_inf: Tensor | None = None) -> Iterator[None]:
    """Let the step in this block divide the gradients first, and do nothing if `found_inf` is above 0.

    Args:
        optimizer: a fused one.
        grad_scale: fp32, 0-d, on the device of the gradients; None for a step with gradients as they are.
        found_inf: likewise; None for a step that is to be taken.
    """
    optimizer.grad_scale, optimizer.found_inf = grad_scale, found_inf
    try:
        yield
    finally:
        del optimizer.grad_scale, optimizer.found_inf
