"""Keep an app from losing its own Trainer plugins when it takes one of our precision configs.

OmegaConf replaces lists, so `trainer.plugins: ["${precision}"]` drops whatever the app had put there, and a trainer
group that comes later drops ours. Each precision config therefore sets `hydra.job.env_set.MP_PLUGIN_CHECK` to
`${mp_plugin.check:}`. Hydra resolves that once per job, before the app's function runs, also in the jobs of a sweep
over `precision` (where Hydra does not call the `hydra.callbacks` that a swept config names).
"""

import re
import shlex
import warnings
from collections.abc import Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf import __version__ as omegaconf_version

_OURS = "${precision}"
_DOTTED_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def check() -> str:
    """Stop the job when its precision plugin and the app's own trainer settings cannot both take effect.

    Raises:
        SystemExit: with one sentence that says what would be lost and which overrides to add.

    Returns:
        What the environment variable is set to while the job runs.
    """
    if not HydraConfig.initialized():  # somebody resolves a whole config outside a job
        return "not in a job"
    hydra = HydraConfig.get()
    groups: Any = hydra.overrides
    overrides = _as_written(groups.hydra) + _as_written(groups.task)
    name, choice = hydra.job.config_name, str(hydra.runtime.choices.get("precision"))
    given = [override for override in overrides if _key(override) == "precision" and not override.startswith("~")]
    if len(given) > 1:  # Hydra would take the last
        raise SystemExit(f"Stopped before training: {' and '.join(given)} are {len(given)} precisions; give one")
    try:
        final = host = _compose(name, overrides)
        if not any(_key(override).startswith("trainer.plugins") for override in overrides):  # else the user has decided
            host = _compose(name, without_precision(overrides))
    except Exception as error:  # Hydra's composition errors have no common base
        warnings.warn(
            f"mp_plugin cannot tell whether precision={choice} drops an entry of this app's own trainer.plugins: "
            f"the app does not compose without it ({error})",
            stacklevel=1,
        )
        return "not possible"
    problem = complaint(final, host, choice)
    if problem:
        raise SystemExit(problem)
    return "passed"


def complaint(final: DictConfig, host: DictConfig, choice: str) -> str | None:
    """Say in one sentence what the precision config and the app take from each other; None when nothing.

    Args:
        final: the job's config.
        host: the same without the precision config.
        choice: the precision config's name.
    """
    if not isinstance(OmegaConf.select(host, "trainer"), DictConfig):
        return None  # the app builds its Trainer from elsewhere and instantiates cfg.precision itself
    present = _entries(final)
    lost = [entry for entry in _entries(host) if entry not in present]
    precision = OmegaConf.select(final, "trainer.precision")
    problems, fixes = [], []
    if lost:
        problems.append(f"precision={choice} would drop {', '.join(map(_label, lost))} from this app's trainer.plugins")
    if _OURS not in present:
        problems.append(f"trainer.plugins does not contain {_OURS}, so that precision={choice} would have no effect")
    if lost or _OURS not in present:
        kept = [entry for entry in present if entry != _OURS]
        fixes.append(f"trainer.plugins={override_value([_OURS, *lost, *kept])}")
    if precision is not None:
        problems.append(f"precision={choice} and trainer.precision={precision} are two precisions for one trainer")
        fixes.append("trainer.precision=null")
    if not problems:
        return None
    return f"Stopped before training: {', and '.join(problems)}; to go on, add {' '.join(map(shlex.quote, fixes))}"


def without_precision(overrides: Sequence[str]) -> list[str]:
    """Rewrite a job's overrides so that they compose the same app without its precision config."""
    keys = {override: _key(override) for override in overrides}
    # A key below `precision`, or one that the precision config may have added, does not exist without it.
    ours = ("precision", "trainer.precision")
    kept = [
        override
        for override, key in keys.items()
        if key not in ours and not key.startswith(("precision.", "precision/"))
    ]
    appended = any(key == "precision" and override.startswith("+") for override, key in keys.items())
    return kept if appended else [*kept, "~precision"]


def override_value(value: Any) -> str:
    """Spell a plain value in the grammar of Hydra's command line."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{override_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(override_value, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (int, float)) or value == _OURS:
        return str(value)
    if _DOTTED_NAME.fullmatch(str(value)):
        return str(value)
    # Within quotes a backslash is itself, except in front of a quote, where it takes two to make one.
    return '"' + re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), str(value)) + '"'


def register() -> None:
    """Make `${mp_plugin.check:}` known to OmegaConf in this process."""
    # OmegaConf 2.4, which comes with Hydra 1.4, warns about the old name; in 2.3 the new one is another function.
    name = "register_new_resolver" if omegaconf_version.startswith("2.3.") else "register_resolver"
    register_resolver: Any = getattr(OmegaConf, name)
    register_resolver("mp_plugin.check", check, replace=True)


def _compose(name: str | None, overrides: list[str]) -> DictConfig:
    loader = GlobalHydra.instance().config_loader()
    return loader.load_configuration(name, overrides, run_mode=RunMode.RUN, from_shell=False)


def _key(override: str) -> str:
    return OverridesParser.create().parse_override(override).key_or_group


def _entries(config: DictConfig) -> list[Any]:
    plugins = OmegaConf.select(config, "trainer.plugins")
    if not isinstance(plugins, ListConfig):  # Trainer takes a single plugin, too
        plugins = ListConfig([] if plugins is None else [plugins], parent=config.get("trainer"))
    entries = _as_written(plugins)
    # A relative interpolation would mean something else on the command line.
    return _resolved(plugins) if "${." in repr(entries) else entries


def _as_written(node: ListConfig) -> list[Any]:
    return OmegaConf.to_container(node)  # type: ignore[return-value]  # a ListConfig becomes a list


def _resolved(node: ListConfig) -> list[Any]:
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]  # as above


def _label(entry: Any) -> str:
    return str(entry.get("_target_", entry)) if isinstance(entry, dict) else str(entry)
