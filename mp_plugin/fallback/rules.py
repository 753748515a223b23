"""From rules to layers: globs on qualified names and on class names."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch.jit import ScriptModule
from torch.nn import Module

from mp_plugin.errors import ConfigError
from mp_plugin.fallback.layers import has_forward, names_of
from mp_plugin.parameter_names import plain_name

SHOWN = 8
"""Names that an error lists at most."""


def select_layers(root: Module, *, layers: Iterable[str] = (), types: Iterable[str] = ()) -> dict[str, str]:
    """Return the layers that rules choose, in the order of the model, each with the rule that chose it.

    `*` matches dots too, `|` parts alternatives, and case counts. A name may hold what wrappers put in, such as
    `_orig_mod.`. A list or a dict of modules stands for its entries. A layer inside a chosen one is left out, unless
    it is called from elsewhere too; one with several names goes by its first. What is never called itself, and what
    TorchScript has compiled, is not chosen.

    Args:
        root: the model.
        layers: globs on qualified names.
        types: globs on the names of classes and of their base classes; `Module` itself is none of them.

    Raises:
        ConfigError: for a rule that chooses nothing; the message lists what comes near.

    Example:
        >>> from torch.nn import LayerNorm, Linear, Sequential
        >>> net = Sequential(Linear(2, 2), Sequential(Linear(2, 2), LayerNorm(2)))
        >>> select_layers(net, layers=["0"], types=["*Norm*"])
        {'0': '0', '1.1': '*Norm*'}
        >>> select_layers(net, layers=["norm"])
        Traceback (most recent call last):
        mp_plugin.errors.ConfigError: Fallback.layers: 'norm' matches no layer; there are '0', '1', '1.0', '1.1'.
    """
    model = _Model(root)
    chosen: dict[Module, str] = {}
    for rule in layers:
        for layer in _chosen_by(rule, "Fallback.layers", model, model.names.__getitem__, plain_name):
            chosen.setdefault(layer, rule)
    for rule in types:
        for layer in _chosen_by(rule, "Fallback.types", model, _class_names, str):
            chosen.setdefault(layer, rule)
    above = {name for layer in chosen for name in model.names[layer]}
    return {
        names[0]: chosen[layer]
        for layer, names in model.names.items()
        if layer in chosen and not all(_is_inside(name, above) for name in names)
    }


class _Model:
    """The layers of a model, by all their names."""

    def __init__(self, root: Module) -> None:
        self.names = names_of(root)
        self._entries: dict[str, list[Module]] = defaultdict(list)
        for layer, names in self.names.items():
            for name in names:
                self._entries[name.rpartition(".")[0]].append(layer)

    def that_are_called(self, layer: Module) -> Iterator[Module]:
        """Yield a layer, or the entries that a list or a dict of layers stands for."""
        if has_forward(layer):
            if not isinstance(layer, ScriptModule):
                yield layer
        else:
            for entry in self._entries[self.names[layer][0]]:
                yield from self.that_are_called(entry)


def _chosen_by(
    rule: str, field: str, model: _Model, names_of_layer: Callable[[Module], list[str]], clean: Callable[[str], str]
) -> list[Module]:
    globs = [clean(glob.strip()) for glob in rule.split("|")]

    def matching(glob: str) -> list[Module]:
        return [layer for layer in model.names if any(fnmatchcase(name, glob) for name in names_of_layer(layer))]

    # A model may have a part of the name that DDP gives to all of it.
    found = [layer for glob in globs for layer in matching(glob) or matching(glob.removeprefix("module."))]
    layers = [layer for each in found for layer in model.that_are_called(each)]
    if layers:
        return layers
    if found:
        which = _listed([f"{model.names[layer][0]} ({type(layer).__name__})" for layer in found])
        raise ConfigError(
            f"{field}: {rule!r} matches only {which}, never called itself or compiled by TorchScript; accepted: layers "
            "whose forward is called."
        )
    known = list(dict.fromkeys(name for layer in model.names for name in names_of_layer(layer)))
    near = list(dict.fromkeys(name for glob in globs for name in _near(glob, known)))
    if near:
        raise ConfigError(f"{field}: {rule!r} matches no layer; did you mean {_listed(near)}?")
    raise ConfigError(f"{field}: {rule!r} matches no layer; there are {_listed(known) or 'none'}.")


def _class_names(layer: Module) -> list[str]:
    """Return the names of a layer's classes, without those that all modules share."""
    return [cls.__name__ for cls in type(layer).__mro__ if issubclass(cls, Module) and cls is not Module]


def _is_inside(name: str, above: set[str]) -> bool:
    """Whether one of these names is that of a module around another one."""
    while name := name.rpartition(".")[0]:
        if name in above:
            return True
    return False


def _near(glob: str, known: list[str]) -> list[str]:
    """Return the names that somebody may have meant: which only lack their beginning, or else a part of them."""
    if longer := [name for name in known if fnmatchcase(name, f"*.{glob}")]:
        return longer
    if in_any_case := [name for name in known if fnmatchcase(name.lower(), f"*{glob.lower()}*")]:
        return in_any_case
    return get_close_matches(glob, known, n=SHOWN)


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {more} more" if more > 0 else "")
