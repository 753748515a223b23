"""The search space: which settings vary, and within what bounds."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Space = dict[str, BaseDistribution]

NUMBERS = {"float": FloatDistribution, "int": IntDistribution}
BOUNDS = ("low", "high", "log", "step")


def read_space(settings: Mapping[str, Any]) -> Space:
    """Turn the config's search space into distributions.

    Args:
        settings: by key, `{type: float | int, low, high, log, step}` or `{choices: [...]}`.

    Raises:
        ValueError: names the key and what is wrong with it.
    """
    if not settings:
        raise ValueError("space is empty: name at least one setting to vary, such as model.lr.")
    return {key: _distribution(key, spec) for key, spec in settings.items()}


def _distribution(key: str, spec: Any) -> BaseDistribution:
    if not isinstance(spec, Mapping):
        raise ValueError(f"space: {key}={spec} is no range: accepted: type, low and high, or choices.")
    if "choices" in spec:
        return _choices(key, spec)
    kind = spec.get("type")
    if kind not in NUMBERS:
        raise ValueError(f"space: type={kind} of {key} is unknown: accepted are float and int, or choices alone.")
    unknown = [name for name in spec if name not in ("type", *BOUNDS)]
    if unknown:
        raise ValueError(f"space: {key} has no {unknown[0]}: accepted are type, {', '.join(BOUNDS)}.")
    for name in ("low", "high", *(["step"] if spec.get("step") is not None else [])):
        value = spec.get(name)
        number = int if kind == "int" else int | float
        if isinstance(value, bool) or not isinstance(value, number):
            raise ValueError(f"space: {name}={value} of {key} is not {'an integer' if kind == 'int' else 'a number'}.")
    if not isinstance(spec.get("log", False), bool):
        raise ValueError(f"space: log={spec['log']} of {key} is neither true nor false.")
    try:
        return NUMBERS[kind](**{name: spec[name] for name in BOUNDS if spec.get(name) is not None})
    except ValueError as error:  # low above high, a logarithm of zero, log with step
        raise ValueError(f"space: {key}: {error}") from error


def _choices(key: str, spec: Mapping[str, Any]) -> CategoricalDistribution:
    unknown = [name for name in spec if name != "choices"]
    if unknown:
        raise ValueError(f"space: {key} has choices, so {unknown[0]} has no meaning there.")
    choices = spec["choices"]
    if not isinstance(choices, list | tuple) or not choices:
        raise ValueError(f"space: choices={choices} of {key} is no list of at least one value.")
    for index, choice in enumerate(choices):
        if choice is not None and not isinstance(choice, bool | int | float | str):
            raise ValueError(f"space: choice {choice} of {key} is no plain value.")
        if choice in choices[:index]:
            raise ValueError(f"space: choice {choice} of {key} is given twice.")
    return CategoricalDistribution(list(choices))
