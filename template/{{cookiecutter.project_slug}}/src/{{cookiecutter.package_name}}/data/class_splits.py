"""Splits in which every class is in every split, and no example is in two."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from {{cookiecutter.package_name}}.data.base import SPLITS


def divide(
    labels: Sequence[int],
    contents: Sequence[Hashable],
    class_names: Sequence[str],
    shares: Mapping[str, float],
    split_seed: int,
) -> dict[str, list[int]]:
    """Row numbers of the training split and of those cut from it; rows of equal content fall into the same one.

    A class with fewer different examples than there are splits stays in training, with a warning.

    Args:
        labels: the class of each row.
        contents: what makes two rows the same example.
        class_names: by label.
        shares: of each class, for every split to be cut off; at least one different example goes there.
        split_seed: decides which example falls into which split.

    Raises:
        ValueError: if no class has enough different examples.
    """
    classes: dict[Hashable, int] = {}
    for label, content in zip(labels, contents, strict=True):
        classes.setdefault(content, label)
    members: list[list[Hashable]] = [[] for _ in class_names]
    for content, label in classes.items():
        members[label].append(content)
    splits = [split for split in SPLITS if split == "train" or split in shares]
    if max(map(len, members)) < len(splits):
        raise ValueError(f"no class has {len(splits)} different examples, one for each of {', '.join(splits)}.")
    few = [name for name, found in zip(class_names, members, strict=True) if 0 < len(found) < len(splits)]
    if few:
        named = ", ".join(few[:5]) + (", ..." if few[5:] else "")
        rank_zero_warn(f"Classes with fewer than {len(splits)} different examples, in train only: {named}.")
    split_of: dict[Hashable, str] = {}
    generator = np.random.default_rng(split_seed)
    for found in members:
        order = [found[i] for i in generator.permutation(len(found))]
        for split in splits[1:]:
            count = min(max(1, round(shares[split] * len(found))), len(found) // len(splits))
            split_of.update(dict.fromkeys(order[:count], split))
            order = order[count:]
    rows: dict[str, list[int]] = {split: [] for split in splits}
    for row, content in enumerate(contents):
        rows[split_of.get(content, "train")].append(row)
    return rows
