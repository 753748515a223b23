"""Parameter names as a user wrote them, without what wrappers put in."""

WRAPPERS = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"})
"""Attributes under which FSDP, activation checkpointing and torch.compile keep the module they wrap."""

FLAT_PARAMETER = "_flat_param"
"""What FSDP calls all parameters of one module in one tensor."""


def plain_name(name: str) -> str:
    """Return a parameter's qualified name as it was before the module was wrapped.

    FSDP's flat parameter becomes a glob, `decoder.*`: it holds all parameters below a module in one tensor.

    Example:
        >>> plain_name("decoder._fsdp_wrapped_module.0._orig_mod.weight")
        'decoder.0.weight'
        >>> plain_name("decoder._fsdp_wrapped_module._flat_param")
        'decoder.*'
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join("*" if part == FLAT_PARAMETER else part for part in parts)
