"""What a reader of a comparison has to know besides its numbers."""

from collections.abc import Iterator, Sequence

from mp_plugin.compare.cost import devices, follows_others
from mp_plugin.compare.groups import Group, differing, is_full_precision
from mp_plugin.compare.judge import MetricResult, paired_values
from mp_plugin.compare.statistics import Method
from mp_plugin.report.words import counted, listed, shown_name

LISTED_KEYS = 8
LISTED_VALUES = 3
LONGEST_VALUE = 40


def notes_on(groups: Sequence[Group], main: Sequence[MetricResult]) -> Iterator[str]:
    """Yield what limits a comparison, in sentences.

    Args:
        groups: the reference first.
        main: the metric that is judged, of each of them.
    """
    reference = groups[0]
    if not is_full_precision(reference):
        yield f"There is no finished run in FP32: {reference.label} is the reference, as the first group found."
    if len(groups) == 1:
        yield f"All runs have one precision, {reference.label}: there is nothing to compare it with."
    for group, result in zip(groups, main, strict=True):
        yield from _of_group(group, reference, result)
    yield from _other_differences(groups)
    timed = devices([run for group in groups for run in group.finished])
    if len(timed) > 1:
        yield f"Times and memory were measured on different devices: {listed(timed)}."
    if len(groups) > 1 and any(map(follows_others, groups)):
        yield (
            "Peak memory is that of a process that had trained other runs before, and kept part of what these took: it "
            f"is not divided by that of {reference.label}. Runs in processes of their own, or on a GPU, can be."
        )


def _of_group(group: Group, reference: Group, result: MetricResult) -> Iterator[str]:
    missing = len(group.runs) - len(group.finished)
    if missing:
        verb = "is" if missing == 1 else "are"
        yield f"{group.label}: {missing} of {counted(len(group.runs), 'run')} did not finish and {verb} left out."
    if without := len(group.finished) - len(result.values):
        yield f"{group.label}: {counted(without, 'finished run')} without {result.metric.name}."
    difference = result.difference
    if difference is None:
        return
    pairs = paired_values(group, reference, result.metric)
    is_paired = difference.method is not Method.welch and difference.count == len(pairs)
    if is_paired:
        left_out = [len(each.finished) - difference.count for each in (group, reference)]
        if any(left_out):
            yield (
                f"{group.label}: the difference is that of {counted(len(pairs), 'pair')} of seeds; "
                f"{counted(sum(left_out), 'run')} without a partner count in the mean alone."
            )
    elif difference.method is Method.welch:
        yield (
            f"{group.label} and {reference.label}: an unpaired test, as they share fewer than two seeds, or one "
            "of them has a seed twice."
        )
    fewest = min(sum(result.metric.name in run.metrics for run in each.finished) for each in (group, reference))
    if difference.low is None and (len(pairs) if is_paired else fewest) > 1:
        yield (
            f"{group.label}: all differences from {reference.label} are the same, so that there is no test; "
            "too small a test split, or results that do not depend on the seed, look like that."
        )
    if difference.method is Method.paired and len(pairs) == 2:
        yield f"{group.label}: two pairs of seeds give very wide intervals; five or more tell much more."


def _other_differences(groups: Sequence[Group]) -> Iterator[str]:
    found = differing([run for group in groups for run in group.finished])
    if not found:
        return
    named = [
        f"{shown_name(key)} ({listed([shown_name(value, LONGEST_VALUE) for value in values], LISTED_VALUES)})"
        for key, values in list(found.items())[:LISTED_KEYS]
    ]
    more = f"; and {len(found) - LISTED_KEYS} more" if len(found) > LISTED_KEYS else ""
    yield f"The runs differ in more than precision and seed: {'; '.join(named)}{more}."
