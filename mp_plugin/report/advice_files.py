"""Write advice down as what another run can be started with: a precision map, and a Hydra config that uses it."""

import os
import shlex
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # its types are a package of their own

from mp_plugin.errors import ConfigError
from mp_plugin.fallback.precision_map import FILE_NAME
from mp_plugin.report.words import printable
from mp_plugin.telemetry.advise import Advice
from mp_plugin.telemetry.advised_map import advised_map
from mp_plugin.telemetry.store import Run
from mp_plugin.whole_file import write_whole

CONFIG = Path("precision") / "advised.yaml"
"""Below the directory, where Hydra finds it as `precision=advised`."""

MARGIN = 4.0
"""By how much the first loss scale is below the highest that fits: steps between samples have larger gradients."""

HEADER = """\
# @package _global_
# Written by `mp-plugin advise`. Use: {command}
"""


def write_advice(
    run: Run, advice: Advice, directory: str | os.PathLike[str], *, overwrite: bool = False
) -> tuple[Path, Path]:
    """Write `precision_map.yaml` and `precision/advised.yaml` below a directory.

    Args:
        run: that the advice is about.
        advice: on it.
        directory: is made if it is not there.
        overwrite: whether files may be replaced.

    Returns:
        The paths of the map and of the config.

    Raises:
        ConfigError: for a file that is there already, without `overwrite`; and where nothing can be written.
        TelemetryError: as `advised_map`.
    """
    found = advised_map(run, advice)
    # The config names the map from wherever Hydra runs its job.
    directory = Path(directory).absolute()
    map_path, config_path = directory / FILE_NAME, directory / CONFIG
    for path in (map_path, config_path):
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} is there already; accepted: another directory, or --force to replace it.")
    try:
        found.save(map_path, title="What `mp-plugin advise` makes of a run: the layers that do not fit fp16 in FP32.")
        write_whole(config_path, config_text(advice, map_path))
    except OSError as error:
        raise ConfigError(
            f"{directory} cannot be written to ({error.strerror or error}); accepted: a directory that can."
        ) from error
    return map_path, config_path


def config_text(advice: Advice, map_path: Path) -> str:
    """Return a config of Hydra's group `precision` that runs in fp16 with a map, and proves what it lacks.

    Args:
        advice: of which the loss scale is taken, if it knows one.
        map_path: absolute.
    """
    # OmegaConf would resolve what looks like an interpolation.
    fallback = {"map": str(map_path).replace("${", r"\${"), "auto": True}
    precision: dict[str, object] = {"fallback": fallback}
    if (scale := _first_scale(advice)) is not None:
        precision["scaling"] = {"init_scale": scale}
    values = {"defaults": ["fp16", "_self_"], "precision": precision}
    body: str = yaml.safe_dump(values, sort_keys=False, width=2**30, allow_unicode=True)
    return HEADER.format(command=how_to_use(map_path.parent)) + body


def how_to_use(directory: Path) -> str:
    """Return the command that trains with what was written to a directory.

    Example:
        >>> how_to_use(Path("/runs/a b"))
        "python train.py --config-dir '/runs/a b' precision=advised"
    """
    return f"python train.py --config-dir {shlex.quote(printable(str(directory)))} precision=advised"


def how_to_use_in_python(advice: Advice, map_path: Path) -> str:
    """Return the same as Python, for training without Hydra."""
    scaling = f", scaling=LossScaling(init_scale={scale:.15g})" if (scale := _first_scale(advice)) is not None else ""
    return f'AdaptivePrecision("fp16", fallback=Fallback(map={str(map_path)!r}, auto=True){scaling})'


def _first_scale(advice: Advice) -> float | None:
    scales = advice.loss_scales
    return None if scales is None else max(scales.highest / MARGIN, scales.lowest)
