"""Settings given twice."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser


def refuse_repeated(overrides: Sequence[str]) -> None:
    """Check that the command line gives each setting once; Hydra would silently use the last.

    Args:
        overrides: as on the command line, such as `precision=bf16`.

    Raises:
        ValueError: names the first setting that is given twice.
    """
    seen: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, given = override.key_or_group, str(override.input_line)
        if override.is_delete():
            continue
        # A list of options is one override, but only one precision can be in effect.
        if key == "precision" and isinstance(override.value(), list):
            raise ValueError(f"{given} names several precisions for one run: give one, or sweep over them with -m.")
        if key in seen:
            raise ValueError(f"{key} is given twice, as {seen[key]} and as {given}: give it once.")
        seen[key] = given
