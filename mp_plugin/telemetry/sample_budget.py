"""Which samples a run can afford."""

from dataclasses import dataclass
from typing import Any

FREE_SECONDS = 0.05
"""That samples may take at any time: 1% of 5 s. So a training of a few seconds has a few samples of a small model."""


@dataclass(kw_only=True, slots=True)
class SampleBudget:
    """What samples have cost a run, and whether there is room for another one.

    Example:
        >>> budget = SampleBudget(max_overhead=0.01)
        >>> budget.is_affordable(training_seconds=0.0)  # nobody knows yet what one costs
        True
        >>> budget.took(0.5)
        >>> [budget.is_affordable(training_seconds=each) for each in (50.0, 100.0)]
        [False, True]
    """

    max_overhead: float
    """Highest share of the training time; 1 sets no limit."""
    taken: int = 0
    left_out: int = 0
    """Samples that were due and would have exceeded the budget."""
    seconds: float = 0.0
    """What all samples took, and what was done with them."""
    _newest: float = 0.0

    def is_affordable(self, *, training_seconds: float) -> bool:
        """Whether another sample as dear as the newest would stay within the budget.

        Args:
            training_seconds: since the first step, samples included.
        """
        allowed = max(FREE_SECONDS, self.max_overhead * training_seconds)
        return self.max_overhead >= 1 or self.seconds + self._newest <= allowed

    def took(self, seconds: float, *, saw_something: bool = True) -> None:
        """Count a sample, or only its time if there was nothing to see."""
        self.taken += saw_something
        self.seconds += seconds
        self._newest = seconds

    def summary(self, *, training_seconds: float) -> dict[str, Any]:
        """Return plain JSON values: `share` is that of the training time."""
        return {
            "taken": self.taken,
            "left_out": self.left_out,
            "seconds": round(self.seconds, 6),
            "training_seconds": round(training_seconds, 6),
            "share": self.seconds / training_seconds if training_seconds else 0.0,
        }
