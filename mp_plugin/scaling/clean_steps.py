"""How long nothing has gone wrong."""

EXACT_STEPS = 16
"""Clean steps at one loss scale after which a run that may do so waits for the device no more. What goes wrong soon
after the start, after a change of the scale or after another incident is seen in time to run its batch again."""


class CleanSteps:
    """Count the clean steps in a row at one loss scale.

    Example:
        >>> steps = CleanSteps()
        >>> for _ in range(EXACT_STEPS):
        ...     steps.another(1024.0)
        >>> steps.are_steady(1024.0), steps.are_steady(2048.0)
        (True, False)
    """

    def __init__(self) -> None:
        self._count, self._scale = 0, 0.0

    def another(self, scale: float) -> None:
        """Note that a step was taken, at this loss scale."""
        self._count = self._count + 1 if scale == self._scale else 1
        self._scale = scale

    def broken(self) -> None:
        """Note an incident."""
        self._count = 0

    def are_steady(self, scale: float) -> bool:
        """Whether there were enough of them, at this loss scale."""
        return self._count >= EXACT_STEPS and self._scale == scale
