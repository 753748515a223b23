"""From rules to layers: globs on qualified names and on class names."""

from collections.abc import Iterable

from torch.nn import Module


def select_layers(root: Module, *, layers: Iterable[str] = (), types: Iterable[str] = ()) -> dict[str, str]:
    """Return the layers that rules choose, in the order of the model, each with the rule that chose it."""
    raise NotImplementedError
