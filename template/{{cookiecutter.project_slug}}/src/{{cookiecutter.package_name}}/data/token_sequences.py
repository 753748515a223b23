"""Data sets of ids: parts of one long text, and texts of their own length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from {{cookiecutter.package_name}}.data.tokenizer import Ends, Ids

#: Fills up short sequences of a language model, which has no use for it as an input and skips it as a target.
NO_TOKEN = -1


class Blocks(Dataset[dict[str, Tensor]]):
    """A long text as sequences of `block_size` + 1 ids that overlap by one, so that each id is predicted once.

    An example is {"tokens": ids of shape [block_size + 1], "num_bytes": bytes of all of them but the first}. Ids at the
    end that do not fill a sequence are left out.

    Args:
        ids: of the whole text.
        ends: where each of them ends, in bytes.
        block_size: ids to be predicted in a sequence.
    """

    def __init__(self, ids: Ids, ends: Ends, block_size: int) -> None:
        self.block_size = block_size
        self._size = max(0, (len(ids) - 1) // block_size)
        self._ids = ids[: self._size * block_size + 1]
        self._num_bytes = np.diff(ends[: len(self._ids) : block_size])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self._size:
            raise IndexError(index)
        start = index * self.block_size
        ids = self._ids[start : start + self.block_size + 1]
        return {
            "tokens": torch.from_numpy(ids.astype(np.int64)),
            "num_bytes": torch.tensor(self._num_bytes[index], dtype=torch.long),
        }


class NamedSequences(Dataset[tuple[dict[str, Tensor], str]]):
    """Sequences of a user's own files for a language model, each with its name.

    Args:
        sequences: ids of any length, and the bytes of all of them but the first.
        names: of the sequences.
    """

    def __init__(self, sequences: Sequence[tuple[Ids, int]], names: Sequence[str]) -> None:
        self._sequences, self._names = sequences, names

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], str]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[dict[str, Tensor], str]]:
        """The examples of a batch, as long as its longest; a loader calls this instead of `__getitem__`."""
        tokens = padded([self._sequences[i][0] for i in indices], NO_TOKEN)
        num_bytes = torch.tensor([self._sequences[i][1] for i in indices])
        return [
            ({"tokens": row, "num_bytes": count}, self._names[i])
            for row, count, i in zip(tokens, num_bytes, indices, strict=True)
        ]


class Texts(Dataset[tuple[dict[str, Tensor], Any]]):
    """Texts of different lengths, each with an answer.

    An example is ({"input_ids", "attention_mask"}, answer); the mask is 1 for ids of the text and 0 for padding.

    Args:
        ids: of each text.
        answers: of each text: class numbers, or names of the texts.
        pad_id: fills up the shorter texts of a batch.
    """

    def __init__(self, ids: Sequence[Ids], answers: Sequence[int] | Sequence[str], pad_id: int) -> None:
        # One array instead of many, which every worker process would come to copy.
        self._ids = np.concatenate([*ids, np.empty(0, dtype=np.int32)])
        self._starts = np.concatenate([[0], np.cumsum([len(row) for row in ids], dtype=np.int64)])
        self.answers, self.pad_id = answers, pad_id

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[dict[str, Tensor], Any]]:
        """The examples of a batch, as long as its longest; a loader calls this instead of `__getitem__`."""
        rows = [self._ids[self._starts[i] : self._starts[i + 1]] for i in indices]
        input_ids = padded(rows, self.pad_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        return [
            ({"input_ids": ids, "attention_mask": ones}, self.answers[i])
            for ids, ones, i in zip(input_ids, mask, indices, strict=True)
        ]


def padded(rows: Sequence[NDArray[np.int32]], padding: int) -> Tensor:
    """Rows of ids as one tensor [rows, longest], filled up on the right; at least one column."""
    result = torch.full((len(rows), max(1, *map(len, rows))), padding, dtype=torch.long)
    for target, row in zip(result, rows, strict=True):
        target[: len(row)] = torch.from_numpy(row.astype(np.int64))
    return result
