"""Where many tensors lie and how they are cut into chunks: tables on the device, sent only when they change."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

MAX_CHUNKS = 2048
"""Beside one per tensor: several for each place on a large GPU. A chunk costs 24 bytes, its row of results included."""
_NUM_KEPT = 16  # layouts, and sets of addresses: two or three groups, whose gradients may move to and fro


class Layout(NamedTuple):
    """How tensors of these lengths are cut into chunks, one row of results each."""

    numels: Tensor
    """int64 `[tensors]`."""
    segments: Tensor
    """int32 `[tensors + 1, 2]`: first row of each tensor, and the end of its rows; last, of all."""
    tensor_of_row: Tensor
    """int32 `[rows]`."""
    chunk_numel: int
    """Length of every chunk but the last of each tensor."""


class Tables(NamedTuple):
    """What a launch needs to know of its tensors."""

    addresses: Tensor
    """int64 `[tensors]`."""
    layout: Layout


def tables_of(flat: Sequence[Tensor], block: int, min_chunk_numel: int) -> Tables | None:
    """Return the tables of tensors on the current device, sent by an asynchronous copy if they are new. No sync.

    A CUDA graph would replay that copy from memory that the host has given back by then, so a graph under capture uses
    what was sent before it, and its tables stay for good.

    Args:
        flat: contiguous tensors of one device, not empty.
        block: chunks are a multiple of so many numbers.
        min_chunk_numel: shortest chunk; a multiple of `block`.

    Returns:
        The tables; None within a capture, if they were not sent before it.
    """
    device = flat[0].device
    numels = tuple(values.numel() for values in flat)
    addresses = tuple(values.data_ptr() for values in flat)
    layout = _on_device(_layouts, (device, block, numels), lambda: _layout(numels, device, block, min_chunk_numel))
    sent = _on_device(_addresses, (device, addresses), lambda: _send(torch.tensor(addresses, device="cpu"), device))
    return None if layout is None or sent is None else Tables(sent, layout)


def _layout(numels: Sequence[int], device: torch.device, block: int, min_chunk_numel: int) -> Layout:
    chunk_numel = max(min_chunk_numel, -(-sum(numels) // (MAX_CHUNKS * block)) * block)
    lengths = torch.tensor(numels, device="cpu")  # whatever the default device is
    num_chunks = (lengths + (chunk_numel - 1)) // chunk_numel
    ends = num_chunks.cumsum(0)
    whole = torch.tensor([[0, int(ends[-1])]], device="cpu")
    segments = torch.cat([torch.stack([ends - num_chunks, ends], dim=1), whole])
    tensor_of_row = torch.arange(len(numels), device="cpu").repeat_interleave(num_chunks)
    sent = [_send(table, device) for table in (lengths, segments.int(), tensor_of_row.int())]
    return Layout(sent[0], sent[1], sent[2], chunk_numel)


_Sent = TypeVar("_Sent", Layout, Tensor)
_layouts: OrderedDict[Any, tuple[int | None, Layout]] = OrderedDict()
_addresses: OrderedDict[Any, tuple[int | None, Tensor]] = OrderedDict()
_in_graphs: list[Any] = []  # a graph may replay at any time, and reads them where they are


def _on_device(kept: OrderedDict[Any, tuple[int | None, _Sent]], key: Any, send: Callable[[], _Sent]) -> _Sent | None:
    stream, sent = kept.pop(key, (None, None))
    if key[0].type == "cuda":
        current = torch.cuda.current_stream().cuda_stream
        if torch.cuda.is_current_stream_capturing():
            # The capture has waited for the stream that they were sent on.
            if sent is None:
                return None
            _in_graphs.append(sent)
        elif stream != current:
            # It would not wait for a copy on another stream, nor would the memory's next owner there wait for it.
            stream, sent = current, None
    sent = send() if sent is None else sent
    kept[key] = (stream, sent)
    if len(kept) > _NUM_KEPT:
        kept.popitem(last=False)
    return sent


def _send(table: Tensor, device: torch.device) -> Tensor:
    # From pinned memory, or the copy would wait. torch keeps that memory until the copy is done.
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table
