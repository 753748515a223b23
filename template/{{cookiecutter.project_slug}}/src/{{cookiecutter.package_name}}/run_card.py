"""The run card: what a run was, and how it ended, in run.json."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from {{cookiecutter.package_name}}.environment import environment
from {{cookiecutter.package_name}}.errors import BAD_REQUEST, JobRefused, refusing, sentence
from {{cookiecutter.package_name}}.git_facts import git_facts, uncommitted
from {{cookiecutter.package_name}}.locks import only_writer
from {{cookiecutter.package_name}}.whole_file import write_bytes, write_text

VERSION = 1
NAME, DIFF = "run.json", "run.diff"


class RunCard:
    """A dictionary that is on disk, as a whole, after every change; only the first process writes.

    Args:
        directory: the run's directory.
        facts: the first content.
    """

    def __init__(self, directory: Path, **facts: Any) -> None:
        self.directory, self.facts = directory, facts
        self.update()

    def update(self, **facts: Any) -> None:
        """Change some of the facts, and write all of them."""
        self.facts.update(facts)
        if first_process():
            # Values of a config may be anything; their text is better than no card.
            text = json.dumps(self.facts, indent=2, default=str)
            write_text(self.directory / NAME, text + "\n")


@contextmanager
def recorded(cfg: DictConfig) -> Iterator[RunCard]:
    """Keep a run card from the start of a run to its end.

    A run that is killed stays "running"; otherwise it ends as "finished", "stopped" (Ctrl-C, SIGTERM) or "failed".

    Args:
        cfg: the run's config.

    Raises:
        Refusal: if the config cannot be resolved, or the directory not be written.
    """
    with ExitStack() as stack:
        with refusing(*BAD_REQUEST):
            directory = Path(cfg.paths.run_dir)
            directory.mkdir(parents=True, exist_ok=True)
            if first_process():
                stack.enter_context(only_writer(directory))
            card = start_card(cfg, directory)
        try:
            yield card
        except BaseException as error:
            status, reason = ("stopped", None) if was_stopped(error) else ("failed", _reason(error))
            card.update(status=status, ended=now(), error=reason)
            if isinstance(error, SIGTERMException):
                # It would end the process with status 0, as if all were done; a shell says 128 + 15.
                raise SystemExit(143) from error
            raise
        card.update(status="finished", ended=now())


def start_card(cfg: DictConfig, directory: Path) -> RunCard:
    """Write the card of a run that starts, and run.diff beside it where there are uncommitted changes."""
    here = Path(__file__).parent
    git = git_facts(here)
    diff = uncommitted(here) if git is not None and git["dirty"] else None
    if diff and first_process():
        write_bytes(directory / DIFF, diff)
    in_app = HydraConfig.initialized()
    return RunCard(
        directory,
        version=VERSION,
        script=cfg.task_name,
        task=None,
        status="running",
        started=now(),
        ended=None,
        error=None,
        git=git,
        config=OmegaConf.to_container(cfg, resolve=True),
        choices=_choices() if in_app else {},
        overrides=list(HydraConfig.get().overrides.task) if in_app else [],
        environment=environment(),
        data=None,
        precision=None,
        resumed_from=None,
    )


def _choices() -> dict[str, str]:
    return {name: option for name, option in HydraConfig.get().runtime.choices.items() if not name.startswith("hydra/")}


def read_card(directory: Path) -> dict[str, Any] | None:
    """The card of a run; None where there is none, or none of this project."""
    try:
        card = json.loads((directory / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(card, dict) and card.get("version") == VERSION and {"script", "status", "config"} <= card.keys()
    return card if known else None


def was_stopped(error: BaseException) -> bool:
    """Whether somebody ended the run; Lightning turns Ctrl-C into an exit with status 1."""
    return isinstance(error, KeyboardInterrupt | SIGTERMException) or isinstance(error.__context__, KeyboardInterrupt)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return str(error.code)
    if isinstance(error, JobRefused):
        return str(error)
    text = sentence(error) if isinstance(error, Exception) else str(error)
    return f"{type(error).__name__}: {text}"


def first_process() -> bool:
    """Whether this process is the only one of the run, or the one that writes its files."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0
