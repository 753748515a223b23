"""Whether train.py accepts what a search space can yield, before any trial starts."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from {{cookiecutter.package_name}}.errors import sentence
from {{cookiecutter.package_name}}.overrides import refuse_repeated
from {{cookiecutter.package_name}}.sweep.command import overrides_of
from {{cookiecutter.package_name}}.sweep.space import Space

#: Combinations of the other choices in which to try a setting; a config takes about a tenth of a second to compose.
MOST_COMBINATIONS = 50


def check_composes(train: Sequence[str], space: Space, metric: str) -> None:
    """Check that each key of a space, and each of its choices, is a setting of train.py in some combination.

    Combinations that exclude each other are left to the trials, which fail one by one.

    Args:
        train: fixed settings.
        space: what varies.
        metric: what trials report.

    Raises:
        ValueError: names the first setting that train.py refuses.
    """
    for setting in train:
        if setting.lstrip("+~").startswith("hydra."):
            raise ValueError(f"train: {setting} cannot be set, as each trial has a folder and a log of its own.")
    refused = _refused(train, {}, metric)
    if refused is not None:
        raise ValueError(f"train: {sentence(refused)}") from refused
    for key, distribution in space.items():
        choices = {name: _samples(other) for name, other in space.items() if name != key and _is_choice(other)}
        for value in _samples(distribution):
            refused = _refused(train, {key: value}, metric)
            # It may exist beside certain choices only, as a loss scale does with fp16.
            combinations = itertools.islice(itertools.product(*choices.values()), MOST_COMBINATIONS)
            if refused is not None and all(
                _refused(train, {key: value, **dict(zip(choices, combination, strict=True))}, metric)
                for combination in combinations
            ):
                raise ValueError(f"space: {sentence(refused)}") from refused


def _refused(train: Sequence[str], params: Mapping[str, Any], metric: str) -> Exception | None:
    """Why train.py would refuse a trial; None if it would not."""
    overrides = overrides_of(train, params, metric, Path("trial"))
    try:
        refuse_repeated(overrides)
        hydra.compose("train", overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return error
    return None


def _is_choice(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, CategoricalDistribution)


def _samples(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return (distribution.low,)
