"""What torch.compile was asked for in this process: compiled code calls no hooks."""

import sys

from torch.nn import Module


def is_compiled(module: Module) -> bool:
    """Whether a module was compiled in one of three ways; a hook on a part of it would have it compiled anew. No sync.

    Example:
        >>> from torch.nn import Linear
        >>> layer = Linear(2, 2)
        >>> is_compiled(layer)
        False
        >>> layer.compile(backend="eager")
        >>> is_compiled(layer)
        True
    """
    by_lightning = vars(module).get("_compiler_ctx") is not None
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules or by_lightning


def may_be_compiled(root: Module) -> bool:
    """Whether something that a model calls is compiled, or will be with its first call. No sync.

    That may be a function that nobody sees from outside: whatever was compiled in this process counts.
    """
    if any(map(is_compiled, root.modules())):
        return True
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return False
    # A reset of dynamo forgets what `torch.compile` was called for, and it may be compiled again.
    backends = dynamo.eval_frame.cached_backends.values()  # None for what is never compiled
    return any(map(callable, backends)) or bool(dynamo.utils.counters["stats"]["unique_graphs"])
