"""FP32 weights for some layers of a model whose weights are half."""

from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn import Module
from torch.nn.parameter import is_lazy

from mp_plugin.errors import UnsupportedError
from mp_plugin.fallback.island_class import HALF
from mp_plugin.fallback.layers import has_forward, layers_by_name, names_of
from mp_plugin.instance import replace_attribute
from mp_plugin.parameter_names import plain_name


@contextmanager
def kept_in_fp32(root: Module, names: Iterable[str]) -> Iterator[None]:
    """Keep the parameters and floating-point buffers of some layers in FP32 while the block casts the model.

    They are what they were before the block, not what is left of them in half. What was half before is cast up.
    Parameters stay the same objects, tied ones stay tied. No optimizer may hold them yet.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> with kept_in_fp32(net, ["1"]):
        ...     _ = net.half()
        >>> net[0].weight.dtype, net[1].weight.dtype
        (torch.float16, torch.float32)
    """
    wanted = frozenset(names)
    layers = [layer for name, layer in layers_by_name(root).items() if name in wanted]
    before = [
        (held, name, tensor.data)
        for part in {part: None for layer in layers for part in layer.modules()}
        for held in (part._parameters, part._buffers)
        for name, tensor in held.items()
        if tensor is not None and not is_lazy(tensor) and tensor.is_floating_point()
    ]
    yield
    for layer in layers:
        to_fp32_(layer)
    # By their values: what FSDP2 has sharded is more than its data.
    with torch.no_grad():
        for held, name, values in before:
            now = held[name]
            if now is not None:
                now.copy_(values)


def to_fp32_(layer: Module) -> None:
    """Cast the fp16 and bf16 parameters and buffers of a layer and all below it to FP32, in place.

    Parameters stay the same objects, tied ones stay tied; fp64 and integers are left alone.
    """
    # Not a walk over the parameters: some modules keep lists of their own, which `_apply` brings up to date.
    layer._apply(lambda tensor: tensor.float() if tensor.dtype in HALF else tensor)  # type: ignore[no-untyped-call]


@contextmanager
def all_in_fp32(root: Module) -> Iterator[None]:
    """Let all fp16 and bf16 parameters and buffers be FP32 while the block runs; then they are what they were.

    Parameters stay the same objects, tied ones stay tied. What the block writes to them is lost. Not for sharded ones.

    Example:
        >>> net = torch.nn.Linear(2, 1).half()
        >>> with all_in_fp32(net):
        ...     net(torch.ones(1, 2)).dtype
        torch.float32
        >>> net.weight.dtype
        torch.float16
    """
    with ExitStack() as undo:
        # An inference tensor cannot be the data of a parameter.
        with torch.inference_mode(False):
            for parameter in root.parameters():
                if parameter.dtype in HALF:
                    undo.callback(setattr, parameter, "data", parameter.data)
                    parameter.data = parameter.data.float()
            for part in root.modules():
                for name, buffer in part._buffers.items():
                    if buffer is not None and buffer.dtype in HALF:
                        undo.callback(part._buffers.__setitem__, name, buffer)
                        part._buffers[name] = buffer.float()
                # What a module of Lightning says is its number format.
                if vars(part).get("_dtype") in HALF:
                    undo.callback(replace_attribute(part, "_dtype", torch.float32))
        yield


def tied_layers(root: Module, names: Iterable[str]) -> dict[str, str]:
    """Return the layers that need to be islands as well where the weights of some layers are FP32, with the reason.

    These hold a parameter or a module of such a layer too, and are called beside it: half inputs do not go with FP32
    weights. Where nobody calls the holder, a list of parameters for one, it is the layer around it.

    Args:
        root: the model.
        names: of the layers in FP32.

    Raises:
        UnsupportedError: when the model itself holds such a parameter.

    Example:
        >>> from torch.nn import Embedding, Linear, ModuleDict
        >>> net = ModuleDict({"embed": Embedding(4, 2), "head": Linear(2, 4, bias=False)})
        >>> net["head"].weight = net["embed"].weight
        >>> tied_layers(net, ["head"])
        {'embed': 'tied to head'}
    """
    own_names = names_of(root)
    by_name = {name: layer for layer, own in own_names.items() for name in own}
    islands = {by_name[name]: "" for name in names}
    todo = list(islands)
    while todo:  # what is tied may tie others
        island = todo.pop(0)
        source = own_names[island][0]
        for name in _holders(root, island, islands):
            holder = by_name[_called_for(name, by_name, source)]
            if holder not in islands:
                islands[holder] = f"tied to {source}"
                todo.append(holder)
    return {names[0]: islands[layer] for layer, names in own_names.items() if islands.get(layer)}


def _holders(root: Module, island: Module, islands: Container[Module]) -> Iterator[str]:
    """Yield the names, outside of all islands, at which an island's modules or parameters are found once more."""
    inside = set(island.modules())
    weights = {id(weight) for weight in island.parameters()}
    todo = [("", root)]
    while todo:
        name, module = todo.pop()
        if module in islands:
            continue
        if module in inside or any(id(weight) in weights for weight in module.parameters(recurse=False)):
            yield plain_name(name)
        else:
            todo += [
                (f"{name}.{child}".lstrip("."), below) for child, below in module._modules.items() if below is not None
            ]


def _called_for(name: str, by_name: dict[str, Module], source: str) -> str:
    """Return the name of the layer, or the next one around it, that is called."""
    holder = name
    while holder and not has_forward(by_name[holder]):
        holder = holder.rpartition(".")[0]
    if not holder:
        raise UnsupportedError(
            f"Layer {source!r} cannot run in FP32: {name or 'the model'} itself, which cannot, holds a parameter of it."
        )
    return holder
