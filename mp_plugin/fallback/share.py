"""How much of a model some of its layers are."""

from collections.abc import Collection

from torch.nn import Module

from mp_plugin.fallback.layers import bears_parameters, is_below, layers_by_name
from mp_plugin.fallback.policy import Share


def share_of(root: Module, names: Collection[str]) -> Share:
    """Return how many of a model's parameter-bearing layers lie in some layers. No sync.

    Example:
        >>> from torch.nn import Linear, ReLU, Sequential
        >>> share_of(Sequential(Sequential(Linear(2, 2), ReLU()), Linear(2, 1)), ["0"])
        Share(layers=1, total=2)
    """
    bearing = [name for name, layer in layers_by_name(root).items() if bears_parameters(layer)]
    covered = [name for name in bearing if any(is_below(name, above) for above in names)]
    return Share(layers=len(covered), total=len(bearing))


def refusal(names: Collection[str], share: Share, max_fraction: float) -> str:
    """Say why layers may not be moved to FP32.

    Example:
        >>> refusal(["head"], Share(layers=2, total=5), 0.2)
        'head in FP32 would make 2 of 5 layers, beyond Fallback.max_fraction=0.2'
    """
    return (
        f"{', '.join(names)} in FP32 would make {share.layers} of {share.total} layers, beyond "
        f"Fallback.max_fraction={max_fraction:.15g}"
    )
