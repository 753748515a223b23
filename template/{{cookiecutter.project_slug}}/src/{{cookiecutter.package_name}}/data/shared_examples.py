"""Examples that are in the training split and in another one, too."""

from collections.abc import Callable, Hashable, Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_warn


def warn_of_shared(
    contents: Mapping[str, Sequence[Hashable]], examples: str, name_of: Callable[[str, int], str]
) -> None:
    """Warn if examples of the splits that came with the data are also in the training split.

    Args:
        contents: what makes two examples the same, of each example in each split that came with the data.
        examples: what the message calls them.
        name_of: what it calls one of them, by its split and its number there: where it stands.
    """
    train = set(contents["train"])
    for split, found in contents.items():
        shared = [i for i, content in enumerate(found) if content in train] if split != "train" else []
        if shared:
            rank_zero_warn(
                f"{len(shared)} of {len(found)} {examples} of {split} are in train too, "
                f"such as {name_of(split, shared[0])}."
            )
