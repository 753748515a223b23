"""Splits in which every class is in every split, and no example is in two."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

#: Shares of the examples for validation and testing, where the data come without these splits.
SHARES = {"val": 0.1, "test": 0.15}


def divide(
    labels: Sequence[int],
    contents: Sequence[Hashable],
    class_names: Sequence[str],
    shares: Mapping[str, float],
    split_seed: int,
) -> dict[str, list[int]]:
    """Row numbers of the training split and of those cut from it; rows of equal content fall into the same one.

    Args:
        labels: the class of each row.
        contents: what makes two rows the same example.
        class_names: by label.
        shares: of each class, for every split to be cut off; at least one different example goes there.
        split_seed: decides which example falls into which split.

    Raises:
        ValueError: names a class that has too few different examples.
    """
    classes: dict[Hashable, int] = {}
    for label, content in zip(labels, contents, strict=True):
        classes.setdefault(content, label)
    split_of: dict[Hashable, str] = {}
    generator = np.random.default_rng(split_seed)
    for label, name in enumerate(class_names):
        members = [content for content, member_of in classes.items() if member_of == label]
        if len(members) <= len(shares):
            raise ValueError(
                f"Class {name} has {len(members)} different examples; "
                f"{len(shares) + 1} splits (train, {', '.join(shares)}) need at least {len(shares) + 1} of each class."
            )
        order = [members[i] for i in generator.permutation(len(members))]
        for split, share in shares.items():
            count = max(1, min(round(share * len(members)), len(members) // (len(shares) + 1)))
            split_of.update(dict.fromkeys(order[:count], split))
            order = order[count:]
    rows: dict[str, list[int]] = {name: [] for name in ("train", *shares)}
    for row, content in enumerate(contents):
        rows[split_of.get(content, "train")].append(row)
    return rows
