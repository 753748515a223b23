"""Training batches that go on in the middle of an epoch."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset

from {{cookiecutter.package_name}}.data.epoch_draws import EpochDraws
from {{cookiecutter.package_name}}.data.epoch_shuffle import EpochShuffle


class ResumableLoader(DataLoader[Any]):
    """A loader that Lightning asks for its state at each checkpoint, and gives it back before it resumes.

    The state is the place of the next batch that no training step has seen. Batches that wait in a worker's queue are
    none of it, so the place comes from whoever counts the steps.

    Args:
        dataset: the training examples.
        batch_size: examples per batch.
        sampler: their order.
        batches_done: tells how many batches of the epoch have been trained on, and how many an epoch has.
        **options: for the DataLoader.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        sampler: EpochShuffle,
        batches_done: Callable[[], tuple[int, float]],
        **options: Any,
    ) -> None:
        super().__init__(EpochDraws(dataset, sampler.seed), batch_size=batch_size, sampler=sampler, **options)
        self.order, self.batches_done = sampler, batches_done

    def state_dict(self) -> dict[str, int]:
        """The epoch and number of the next batch, and how many examples all ranks take in a step."""
        done, whole = self.batches_done()
        epoch, batch = (self.order.epoch, done) if done < whole else (self.order.epoch + 1, 0)
        return {"epoch": epoch, "batch": batch, "examples_per_step": self._examples_per_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the batch of a state.

        Raises:
            ValueError: if that batch began elsewhere in the epoch than a batch of this loader does.
        """
        check_place(state, self._examples_per_step)
        self.order.set_epoch(state["epoch"])
        self.order.start = state["batch"] * int(self.batch_size or 1)

    @property
    def _examples_per_step(self) -> int:
        return int(self.batch_size or 1) * self.order.num_replicas


def check_place(state: Mapping[str, int], examples_per_step: int) -> None:
    """Check that a run can go on at the place in an epoch that a loader's state names.

    Args:
        state: of a `ResumableLoader`.
        examples_per_step: what all ranks together take in a step.

    Raises:
        ValueError: if that place is no beginning of a batch here.
    """
    if state["batch"] and state["examples_per_step"] != examples_per_step:
        raise ValueError(
            f"The checkpoint was written in the middle of an epoch, with {state['examples_per_step']} examples per "
            f"step over all ranks, and this run takes {examples_per_step}: resume with as many, or from a "
            "checkpoint at the end of an epoch."
        )
