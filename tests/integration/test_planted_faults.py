"""Each planted fault is named: cause, direction, operator, layer, line, kind; in each mode of training."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from mp_plugin.telemetry.events import Incident
from tests.helpers.faults.catalogue import FAULTS, fault
from tests.helpers.faults.fault import Fault
from tests.helpers.faults.fit import FAULTY, Run, train
from tests.helpers.faults.image import DENSE
from tests.helpers.faults.oracle import replay
from tests.helpers.faults.training import Planted, checkpoint_blocks
from tests.helpers.ranks import run_on_ranks


def compile_in_place(model: Planted, *, backend: str) -> None:
    model.net.compile(backend=backend)


def wrap_compiled(model: Planted) -> None:
    model.net = torch.compile(model.net, backend="aot_eager")  # type: ignore[assignment]


PREPARED: dict[str, tuple[Callable[[Planted], None], str]] = {
    "compiled": (
        partial(compile_in_place, backend="aot_eager"),
        "matmul conv exp zero-over-zero masked-softmax attention-logits called-twice nested-tuples between-modules "
        "large-weight custom-function root-of-variance masked-log loss-sum nan-sample nan-weight",
    ),
    "compiled-wrapper": (wrap_compiled, "matmul dict-outputs large-conv-weight"),
    # With generated code; of one block only, as the compiler takes its time.
    "compiled-block": (lambda model: model.get_submodule(DENSE).compile(), "matmul"),
    "checkpointed": (
        partial(checkpoint_blocks, use_reentrant=False),
        "matmul conv exp masked-softmax std-norm shared-module large-weight large-conv-weight custom-function "
        "root-of-variance masked-log nan-sample",
    ),
    "checkpointed-reentrant": (
        partial(checkpoint_blocks, use_reentrant=True),
        "matmul conv exp masked-softmax std-norm shared-module large-weight large-conv-weight custom-function "
        "root-of-variance masked-log nan-sample",
    ),
}
IN_A_WINDOW = (
    "matmul log-of-zero masked-softmax custom-function root-of-variance loss-sum nan-sample gradient-cast "
    "attention-logits after-a-log-mask"
)
MANUAL = "matmul exp zero-over-zero masked-softmax between-modules root-of-variance masked-log nan-sample"
ON_RANK_ONE = "matmul masked-softmax after-a-log-mask root-of-variance large-weight nan-sample nan-weight"
WINDOW = 3


def is_named(planted: Fault, incident: Incident, *, scale: float = 1.0) -> None:
    """One incident tells all of its fault.

    Args:
        planted: the fault.
        incident: the first one in a spoiled batch.
        scale: what Lightning multiplies the loss by, beside the loss scale.
    """
    assert planted.differences(incident) == []
    assert incident.traced
    assert incident.evidence
    assert set(incident.parameters) == set(replay(planted, scale=incident.loss_scale * scale).victims)
    json.dumps(incident.as_dict(), allow_nan=False)


def all_is_known(planted: Fault, run: Run, faulty: set[int]) -> None:
    """Nothing happened in healthy batches, and nothing without a cause."""
    assert {incident.batch_idx for incident in run.incidents} == faulty
    assert {incident.cause for incident in run.incidents} <= {origin.cause for origin in planted.accepted}


def goes_on_as_it_should(planted: Fault, run: Run) -> None:
    """A run stops where it must; where it goes on, a cured batch counts and another one does not."""
    assert (run.stopped is not None) == planted.stops_the_run
    if not planted.stops_the_run:
        is_cured = run.incidents[-1].cured
        assert planted.cured in (None, is_cured)
        assert run.plugin.effective_step == 4 + is_cured
        assert run.plugin.skipped_steps == 1 - is_cured


@pytest.mark.parametrize("planted", FAULTS, ids=lambda each: each.name)
def test_eager(planted: Fault) -> None:
    run = train(planted)
    is_named(planted, run.incidents[0])
    assert (run.incidents[0].step, run.incidents[0].rank) == (FAULTY, 0)
    all_is_known(planted, run, {FAULTY})
    goes_on_as_it_should(planted, run)


@pytest.mark.filterwarnings(
    # Parts of torch's compiler that warn of other parts of torch.
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:.*Function'> should not be instantiated:DeprecationWarning",
)
@pytest.mark.parametrize(
    ("mode", "name"), [(mode, name) for mode, (_, names) in PREPARED.items() for name in names.split()]
)
def test_prepared(mode: str, name: str) -> None:
    torch._dynamo.reset()
    planted = fault(name)
    run = train(planted, prepare=PREPARED[mode][0])
    is_named(planted, run.incidents[0])
    assert run.incidents[0].step == FAULTY
    all_is_known(planted, run, {FAULTY})
    goes_on_as_it_should(planted, run)


@pytest.mark.parametrize("place", range(WINDOW), ids=["first", "middle", "last"])
@pytest.mark.parametrize("name", IN_A_WINDOW.split())
def test_accumulated(name: str, place: int) -> None:
    """The spoiled batch is one of the second of three windows."""
    planted, faulty = fault(name), WINDOW + place
    run = train(planted, faulty=(faulty,), count=3 * WINDOW, accumulate_grad_batches=WINDOW)
    is_named(planted, run.incidents[0], scale=1 / WINDOW)
    assert run.incidents[0].step == 1
    all_is_known(planted, run, {faulty})
    assert run.plugin.effective_step + run.plugin.skipped_steps == 3


@pytest.mark.parametrize("name", MANUAL.split())
def test_manual(name: str) -> None:
    """The first incident sets up a watch, under which the second is caught."""

    def by_hand(model: Planted) -> None:
        model.automatic_optimization = False

    planted = fault(name)
    run = train(planted, faulty=(1, 3), count=6, prepare=by_hand)
    first, second = run.incidents
    assert (first.batch_idx, first.step, second.batch_idx, second.step) == (1, 1, 3, 3)
    assert first.evidence
    is_named(planted, second)
    assert run.plugin.effective_step == 4


def train_on_this_rank(out: Path) -> None:
    """Train faults that only rank 1 has, and write down what this rank knows."""
    for name in ON_RANK_ONE.split():
        run = train(fault(name), spoiled_rank=1, strategy="ddp", devices=2, use_distributed_sampler=False)
        result = {
            "stopped": run.stopped is not None,
            "effective_step": run.plugin.effective_step,
            "incidents": [incident.as_dict() for incident in run.incidents],
        }
        (out / f"{name}-rank{run.model.global_rank}.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    run_on_ranks(train_on_this_rank, out)
    return out


@pytest.mark.xdist_group("faults-on-ranks")
@pytest.mark.parametrize("name", ON_RANK_ONE.split())
def test_two_ranks(trained: Path, name: str) -> None:
    """A fault that only rank 1 has is traced there, and both know."""
    planted = fault(name)
    ranks = [json.loads((trained / f"{name}-rank{rank}.json").read_text()) for rank in range(2)]
    for result in ranks:
        incidents = [Incident.from_dict(each) for each in result["incidents"]]
        is_named(planted, incidents[0])
        assert (incidents[0].rank, incidents[0].step) == (1, FAULTY)
        assert {incident.batch_idx for incident in incidents} == {FAULTY}
        assert result["stopped"] == planted.stops_the_run
    assert ranks[0]["effective_step"] == ranks[1]["effective_step"]
