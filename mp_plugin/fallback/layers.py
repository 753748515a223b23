"""The layers of a model, by the names that a user knows."""

from torch.jit import ScriptModule
from torch.nn import Module
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mp_plugin.parameter_names import plain_name


def layers_by_name(root: Module) -> dict[str, Module]:
    """Return every module below a root by its qualified name, in the order of the model, without wrappers.

    A module that has several names goes by its first; under a name that a wrapper shares with what it wraps, the
    wrapped module is found. The root itself is left out.

    Example:
        >>> from torch.nn import Linear, ReLU, Sequential
        >>> list(layers_by_name(Sequential(Linear(2, 2), ReLU())))
        ['0', '1']
    """
    # The wrapped module comes after its wrapper, and takes over its name.
    found = {plain_name(name): module for name, module in root.named_modules()}
    return {name: module for name, module in found.items() if name}


def names_of(root: Module) -> dict[Module, list[str]]:
    """Return every module below a root with all its names, in the order of the model, without wrappers.

    The first of its names is that in `layers_by_name`. A wrapper has none.
    """
    by_name = {plain_name(name): module for name, module in root.named_modules(remove_duplicate=False)}
    names: dict[Module, list[str]] = {}
    for name, module in by_name.items():
        if module is not root:
            names.setdefault(module, []).append(name)
    return names


def has_forward(module: Module) -> bool:
    """Whether a module is one that is called: a list or a dictionary of modules is not.

    Nor is the last projection of torch's attention, whose weights the attention itself reads.
    """
    if isinstance(module, ScriptModule):  # whose class cannot be asked
        return True
    has_one = type(module).forward is not Module.forward or "forward" in vars(module)
    return has_one and not isinstance(module, NonDynamicallyQuantizableLinear)


def bears_parameters(module: Module) -> bool:
    """Whether a module holds parameters itself, not only in modules below it."""
    return any(True for _ in module.parameters(recurse=False))


def is_below(name: str, above: str) -> bool:
    """Whether a layer lies inside another one, or is it."""
    return name == above or name.startswith(f"{above}.")
