"""Try something on every rank, and let all ranks know how it went."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from mp_plugin.scaling.verdict import gather

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class AllRanks:
    """Attempts that all ranks make together, none of which may take down the run.

    What fails goes to the evidence under `missing`; the first failure of a run also to the log.

    Args:
        trouble: what the log says of a failure.
    """

    def __init__(self, trouble: str = "An incident could not be traced") -> None:
        self._trouble = trouble
        self._has_failed = False

    def each(self, attempt: Callable[[], Result], evidence: dict[str, Any]) -> list[Result | None]:
        """Return each rank's result, None where it failed."""
        result, problem = None, None
        # A diagnosis must not take down the run that it diagnoses.
        try:
            result = attempt()
        except Exception as error:
            problem = f"it failed: {type(error).__name__}: {error}"
            if not self._has_failed:
                self._has_failed = True
                log.warning("%s; training goes on without it.", self._trouble, exc_info=error)
        everywhere = gather((result, problem))
        if problems := list(dict.fromkeys(problem for _, problem in everywhere if problem is not None)):
            evidence["missing"] = [*evidence.get("missing", []), *problems]
        return [result for result, _ in everywhere]

    def everywhere(self, question: Callable[[], bool], evidence: dict[str, Any]) -> bool | None:
        """Whether the answer is yes on all ranks; None if one of them has none."""
        answers = self.each(question, evidence)
        return None if None in answers else all(answers)
