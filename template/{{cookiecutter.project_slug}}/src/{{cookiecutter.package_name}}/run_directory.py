"""A run never writes into the directory of another."""

import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.errors import BAD_REQUEST, refusing
from {{cookiecutter.package_name}}.meeting_point import job_key, meeting_point
from {{cookiecutter.package_name}}.processes import Place, this_process
from {{cookiecutter.package_name}}.resume import newest_unfinished
from {{cookiecutter.package_name}}.run_card import DIFF, NAME, read_card

#: The environment variable from which conf/hydra/default.yaml takes the name of a run's directory, if it is set.
RUN_NAME = "{{cookiecutter.package_name | upper}}_RUN_NAME"

#: All that there is of a run whose settings were refused, beside Hydra's log.
LEFT_BY_REFUSED = (".hydra", ".lock", NAME, DIFF)


def run_name(place: Place) -> str | None:
    """The name of the directory that all processes of a launcher's job share, and all restarts of the job.

    Args:
        place: of this process.

    Returns:
        None where there is no launcher: the name is then the time at which the config was composed.
    """
    if place.launcher is None or RUN_NAME in os.environ:
        return None
    if place.launcher == "srun":
        return place.job
    # torchrun has no name that is unique, but a store that stays when it starts the processes again.
    store, key = meeting_point(place), job_key(place, "run-name")
    if not store.check([key]):
        store.set(key, datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))
    return store.get(key).decode()


class RefuseExistingRun(Callback):
    """Claim the run's directory before Hydra writes into it.

    Hydra turns exceptions of callbacks into warnings, hence SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the run's own subdirectory, the mark of a run; only one process can.

        Raises:
            SystemExit: if the directory already holds a run, other than the one that a launcher starts again.
        """
        place = this_process()
        # The other processes of a multi-device run share the directory that the first one claimed.
        if place.rank > 0:
            return
        if config.get("resume") == "latest":
            with refusing(*BAD_REQUEST):
                _find_latest(config)
            return
        run_dir = Path(config.hydra.run.dir)
        mark = run_dir / (config.hydra.output_subdir or ".hydra")
        owner = mark / "launcher"
        job = f"{place.job} {os.environ.get(RUN_NAME, '')}"
        if place.restarts and owner.is_file() and owner.read_text(encoding="utf-8") == job:
            return
        if _was_refused(run_dir):
            _clear(run_dir, mark)
        _claim(mark, f"hydra.run.dir={run_dir}")
        if place.launcher is not None:
            owner.write_text(job, encoding="utf-8")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the directory that the runs of a sweep share.

        Raises:
            SystemExit: if the directory exists, or if SLURM is to run the sweep and is not here, or if a sweep is to go
                on and the command line does not say which.
        """
        if "SlurmLauncher" in str(config.hydra.launcher.get("_target_")) and shutil.which("srun") is None:
            raise SystemExit(
                "trainer=slurm hands runs to SLURM, and this machine has no srun: start it on your cluster, or try it "
                "out with trainer=ddp hydra/launcher=submitit_local."
            )
        sweep_dir = Path(config.hydra.sweep.dir)
        if config.get("resume") == "latest":
            if not _is_given(config, "hydra.sweep.dir"):
                raise SystemExit("resume=latest needs the directory of the sweep that is to go on: hydra.sweep.dir=...")
            return
        _claim(sweep_dir, f"hydra.sweep.dir={sweep_dir}")


def _was_refused(directory: Path) -> bool:
    """Whether the run in a directory ended before it did anything, so that the same command may come again."""
    card = read_card(directory)
    return (
        card is not None
        and card["status"] == "failed"
        and {each.name for each in directory.iterdir()} <= {*LEFT_BY_REFUSED, f"{card['script']}.log"}
    )


def _clear(directory: Path, mark: Path) -> None:
    """Remove what a refused run left; of several processes that want to, one does."""
    try:
        (directory / NAME).unlink()
    except FileNotFoundError:
        return
    (directory / DIFF).unlink(missing_ok=True)
    shutil.rmtree(mark)


def _find_latest(config: DictConfig) -> None:
    """Have `resume=latest` go on in the directory of the newest unfinished run, unless the command line names one."""
    found = None if _is_given(config, "hydra.run.dir") else newest_unfinished(config, Path(config.hydra.run.dir).parent)
    if found is not None:
        config.hydra.run.dir = str(found)


def _is_given(config: DictConfig, name: str) -> bool:
    """Whether the command line sets one of Hydra's own settings."""
    return any(str(override).startswith(f"{name}=") for override in config.hydra.overrides.hydra)


def _claim(directory: Path, setting: str) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mkdir(directory)
    except FileExistsError:
        raise SystemExit(
            f"{setting} already holds a run, and runs are never overwritten: choose a new directory, or none."
        ) from None
