"""How the scripts at the project's root start."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf

from {{cookiecutter.package_name}}.compare_at_end import compare_unfinished_sweep
from {{cookiecutter.package_name}}.errors import refusing
from {{cookiecutter.package_name}}.meeting_point import dismiss_other_processes, meeting_point
from {{cookiecutter.package_name}}.processes import Place, this_process
from {{cookiecutter.package_name}}.run_directory import RUN_NAME, run_name


def entry_point(main: Callable[..., None]) -> Callable[[], None]:
    """Make settings that do not compose end in one sentence on stderr and exit status 1, like all other bad settings.

    Of the processes that torchrun or srun has started, the first one composes the config for all.

    Args:
        main: a function decorated with `hydra.main`.
    """

    @functools.wraps(main)
    def run() -> None:
        place = this_process()
        _refuse_sweep(place, sys.argv[1:])
        if place.launcher is not None and place.rank > 0:
            # `launch.on_all_processes` puts the first one's config in the place of this one.
            main(OmegaConf.create())
            return
        if place.launcher is not None and place.world_size > 1:
            meeting_point(place)  # is open before anything can go wrong here, so that the others notice if it does
        # Hydra hands exceptions on, rather than print them itself over several lines.
        with _variables({"HYDRA_FULL_ERROR": "1", RUN_NAME: run_name(place)}), refusing(HydraException):
            try:
                main()
            except MissingConfigException as error:
                if "submitit" in str(error.missing_cfg_file):
                    raise SystemExit('SLURM needs hydra-submitit-launcher: pip install -e ".[slurm]"') from error
                raise
            except Exception as error:
                if str(error).startswith("Config group override must be"):  # as Hydra says it, without the group
                    sentence = "A group of the configuration, such as logger, cannot be null: leave it out"
                    raise SystemExit(f"{sentence}, as with ~logger.") from error
                compare_unfinished_sweep()
                raise
        dismiss_other_processes(place)

    return run


def _refuse_sweep(place: Place, arguments: list[str]) -> None:
    """Refuse a sweep in processes that were started for one run."""
    if place.world_size > 1 and place.launcher is not None and {"-m", "--multirun"} & set(arguments):
        sentence = f"{place.launcher} has started {place.world_size} processes for one run, and -m asks for several: "
        sentence += f"leave {place.launcher} out, as every run of a sweep starts its own processes."
        raise SystemExit(1 if place.rank else sentence)  # said once


@contextmanager
def _variables(values: dict[str, str | None]) -> Iterator[None]:
    """Set environment variables for a while; None leaves one as it is."""
    before: dict[str, Any] = {name: os.environ.get(name) for name in values}
    os.environ |= {name: value for name, value in values.items() if value is not None}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
