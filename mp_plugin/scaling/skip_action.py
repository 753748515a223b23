"""What follows a step that is not taken."""

from mp_plugin.telemetry.events import Action


def choose_action(*, weights_are_lost: bool, backs_off: bool, is_hopeless: bool) -> Action:
    """Decide by the first that applies: training is lost, the loss scale has room, there were too many in a row.

    Example:
        >>> choose_action(weights_are_lost=False, backs_off=True, is_hopeless=True).value
        'backoff'
    """
    if weights_are_lost:
        return Action.raise_
    if backs_off:
        return Action.backoff
    return Action.raise_ if is_hopeless else Action.skip
