"""What a gradient holds, whatever its kind: dense numbers, in groups that one launch can take."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


def local_values(grad: Tensor) -> Tensor:
    """Return the numbers of a gradient as a dense tensor that shares its memory.

    A sparse gradient gives its values (the caller coalesces it first), a distributed one its local part, a complex one
    its real and imaginary parts.
    """
    if type(grad) is Tensor and grad.layout is torch.strided and not grad.is_complex():
        return grad  # most are, and there may be ten thousand
    grad = local_part(grad)
    values = grad._values() if grad.is_sparse else grad
    if values.is_complex():
        # torch unscales real numbers only. A lazy conjugate differs by signs, which nobody here looks at.
        values = torch.view_as_real(values.conj() if values.is_conj() else values)
    return values


def local_part(grad: Tensor) -> Tensor:
    """Return what this process holds of a gradient: itself, unless it is a DTensor."""
    # By its method, as a torch that was built without torch.distributed has no DTensor to ask for.
    to_local = getattr(grad, "to_local", None)
    return grad if to_local is None else to_local()


def settled(grad: Tensor) -> Tensor:
    """Return a gradient with no sum outstanding; itself, if there is none.

    Rows of a sparse gradient that appear twice, and parts of a distributed one that still wait to be added up, are
    finite one by one and may overflow in their sum.
    """
    if grad.is_sparse:
        return grad if grad.is_coalesced() else grad.coalesce()
    placements = getattr(grad, "placements", ())
    if not any(placement.is_partial() for placement in placements):
        return grad
    from torch.distributed.tensor import Replicate

    whole = [Replicate() if placement.is_partial() else placement for placement in placements]
    return grad.redistribute(placements=whole)  # type: ignore[attr-defined, no-any-return]


def grouped(values: Sequence[Tensor]) -> list[list[int]]:
    """Return the indices of the non-empty tensors by device and dtype: what one foreach launch can take."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for index, tensor in enumerate(values):
        # The infinity norm of nothing is an error in torch.
        if tensor.numel():
            groups[(tensor.device, tensor.dtype)].append(index)
    return list(groups.values())


def device_of(values: Sequence[Tensor]) -> torch.device:
    """Return the device of the first of these tensors; the CPU if there is none."""
    return values[0].device if values else torch.device("cpu")
