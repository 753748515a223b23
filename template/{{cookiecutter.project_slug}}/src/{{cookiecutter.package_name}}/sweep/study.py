"""A study on disk: its database, and who chooses and who prunes."""

import fcntl
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna import pruners, samplers
from optuna.distributions import distribution_to_json
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from {{cookiecutter.package_name}}.sweep.space import Space

SAMPLERS: dict[str, type[samplers.BaseSampler]] = {
    "tpe": samplers.TPESampler,
    "random": samplers.RandomSampler,
    "qmc": samplers.QMCSampler,
    "gp": samplers.GPSampler,
}
PRUNERS: dict[str, type[pruners.BasePruner]] = {
    "none": pruners.NopPruner,
    "median": pruners.MedianPruner,
    "percentile": pruners.PercentilePruner,
    "halving": pruners.SuccessiveHalvingPruner,
    "hyperband": pruners.HyperbandPruner,
}
DIRECTIONS = ("minimize", "maximize")

#: Signs of life that may be missing before a trial counts as lost.
MISSED_HEARTBEATS = 6
#: Seconds that a worker waits for another one to finish its transaction.
SQLITE_WAIT_SECONDS = 120


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep all other workers of a study out; the system frees the lock of a worker that is killed."""
    with open(folder / "study.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def quieten() -> None:
    """Hide messages of Optuna that ask for nothing."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Heartbeats and some options have been experimental for years.
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    # Our trials are processes of their own, so they run outside of Study.optimize and have their own heartbeat.
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")


def open_study(
    folder: Path, name: str, storage: str | None, heartbeat_seconds: int, direction: str, pruner: pruners.BasePruner
) -> optuna.Study:
    """Create a study, or open the one that exists; to be called `alone`.

    Args:
        folder: where study.db lies if there is no other storage.
        name: of the study in the storage.
        storage: a database URL.
        heartbeat_seconds: between two signs of life of a running trial.
        direction: of a new study.
        pruner: stops trials.

    Raises:
        ValueError: if the storage cannot be opened.
    """
    url = storage or f"sqlite:///{(folder / 'study.db').absolute()}"
    wait = {"connect_args": {"timeout": SQLITE_WAIT_SECONDS}} if url.startswith("sqlite") else {}
    try:
        database = RDBStorage(
            url,
            engine_kwargs=wait,
            heartbeat_interval=heartbeat_seconds,
            grace_period=MISSED_HEARTBEATS * heartbeat_seconds,
        )
        return optuna.create_study(
            storage=database, study_name=name, direction=direction, pruner=pruner, load_if_exists=True
        )
    except (SQLAlchemyError, ImportError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"storage={url} cannot be opened as a study: {reason}.") from error


def make_identity(space: Space, train: Sequence[str], metric: str, direction: str) -> dict[str, Any]:
    """What must be the same whenever a study is gone on with, as plain values."""
    ranges = {f"space.{key}": json.loads(distribution_to_json(distribution)) for key, distribution in space.items()}
    return {"metric": metric, "direction": direction, "train": list(train), **ranges}


def check_identity(study: optuna.Study, identity: Mapping[str, Any]) -> None:
    """Write a new study's identity down, or compare with that of the stored one; to be called `alone`.

    A study in which no trial has had a result yet takes any, except for its direction.

    Raises:
        ValueError: names the first difference.
    """
    stored = study.user_attrs.get("identity")
    was = study.direction.name.lower()
    with_results = any(trial.state not in (TrialState.FAIL, TrialState.WAITING) for trial in study.trials)
    if was != identity["direction"] or (stored and with_results):
        stored = {**(stored or identity), "direction": was}
        for key in [*identity, *stored]:
            if identity.get(key) != stored.get(key):
                raise ValueError(
                    f"name={study.study_name} is a study with {key}={_shown(stored.get(key))}, and now "
                    f"{key}={_shown(identity.get(key))}: choose another name, or the old setting."
                )
    study.set_user_attr("identity", dict(identity))


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, dict):
        value = {key: item for key, item in value["attributes"].items() if item is not None}
    return str(value)


def check_names(direction: str, sampler: str, pruner: str) -> None:
    """Check settings that are one of a few.

    Raises:
        ValueError: names the first that is unknown.
    """
    known = {"direction": (direction, DIRECTIONS), "sampler": (sampler, SAMPLERS), "pruner": (pruner, PRUNERS)}
    for setting, (value, accepted) in known.items():
        if value not in accepted:
            raise ValueError(f"{setting}={value} is unknown; accepted: {', '.join(accepted)}.")


def make_pruner(name: str, options: Mapping[str, Any]) -> pruners.BasePruner:
    """What stops trials that fall behind.

    Raises:
        ValueError: if the class does not take the options.
    """
    return _build("pruner_options", PRUNERS[name], options)


def make_sampler(name: str, options: Mapping[str, Any], seed: int, num_trials: int) -> samplers.BaseSampler:
    """What chooses the next trial.

    A new one for each trial, seeded with the number of trials so far: a study that is gone on with does not draw the
    random numbers of its first trials again, nor do two workers draw the same ones.

    Args:
        name: one of `SAMPLERS`.
        options: further arguments.
        seed: of the sweep.
        num_trials: in the study so far.

    Raises:
        ValueError: if the class does not take the options.
    """
    drawn = int(np.random.SeedSequence((seed, num_trials)).generate_state(1)[0])
    if name == "qmc":  # one sequence, in which the study keeps its place; what has no order is drawn at random
        own: dict[str, Any] = {"seed": seed, "independent_sampler": samplers.RandomSampler(seed=drawn)}
        own["warn_independent_sampling"] = False
    elif name == "tpe":  # trials that are still running, here or at other workers, count as poor: look elsewhere
        own = {"seed": drawn, "constant_liar": True}
    else:
        own = {"seed": drawn}
    return _build("sampler_options", SAMPLERS[name], {**own, **options})


def _build(setting: str, kind: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    accepted = [name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")]
    unknown = [name for name in options if name not in accepted]
    if unknown:
        named = f"accepted are {', '.join(accepted)}" if accepted else "it takes none"
        raise ValueError(f"{setting}: {unknown[0]} is not an option of {_name(kind)}; {named}.")
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{setting}: {_name(kind)}: {error}") from error


def _name(kind: Callable[..., Any]) -> str:
    return getattr(kind, "__name__", str(kind))
