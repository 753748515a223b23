"""Objects from config nodes, on Hydra 1.3 and 1.4."""

from typing import Any

import hydra
from omegaconf import DictConfig

#: Where the config may take objects from: Hydra 1.4 refuses (1.3: does not ask about) anything else.
TRUSTED = ["{{cookiecutter.package_name}}.*", "mp_plugin.*", "lightning.pytorch.*"]


def instantiate_trusted(node: DictConfig, **kwargs: Any) -> Any:
    """Build what a node's `_target_` names.

    Args:
        node: a config node with a `_target_`.
        **kwargs: arguments that the node does not hold.
    """
    if hasattr(hydra.utils, "execution_whitelist"):
        return hydra.utils.instantiate(node, _execution_whitelist_=TRUSTED, **kwargs)
    return hydra.utils.instantiate(node, **kwargs)


def instantiate_each(group: DictConfig | None) -> list[Any]:
    """Build every node of a group, such as the callbacks; an entry set to null is left out."""
    return [instantiate_trusted(node) for node in (group or {}).values() if node is not None]
