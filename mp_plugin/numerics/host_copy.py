"""A copy on its way from the device to the host."""

import torch
from torch import Tensor


class HostCopy:
    """Copy a tensor to the host without waiting, and read it when it is there.

    From CUDA into pinned memory, behind the work that is queued; whatever lies on the host already is not copied.

    Example:
        >>> HostCopy(torch.ones(2)).read()
        tensor([1., 1.])
    """

    def __init__(self, tensor: Tensor) -> None:
        self._is_there: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._host = tensor.cpu()
            return
        # Whatever the default device is.
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._is_there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._is_there.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """Return the copy; waits for it, should it not be there yet."""
        if self._is_there is not None:
            self._is_there.synchronize()
        return self._host
