"""Whether data are of the kind that a model was trained on."""

from collections.abc import Mapping
from typing import Any

#: What must be the same, and what a message calls it.
MUST_AGREE = {"tokenizer": "tokens", "class_names": "classes"}


def check_kept(kept: Mapping[str, Any], now: Mapping[str, Any], path: str) -> None:
    """Check that ids and class numbers mean what they meant when a checkpoint was written.

    Two tokenizers may have equally many tokens, and two tables equally many classes, so the shapes of the weights do
    not tell.

    Args:
        kept: what `settings_to_keep` returned then.
        now: what it returns now.
        path: the checkpoint's file.

    Raises:
        ValueError: names what differs.
    """
    for name, noun in MUST_AGREE.items():
        if name in kept and name in now and kept[name] != now[name]:
            advice = f"; data.tokenizer={path} takes the checkpoint's" if name == "tokenizer" else ""
            raise ValueError(f"ckpt_path={path} was trained with other {noun} than the data have{advice}.")
