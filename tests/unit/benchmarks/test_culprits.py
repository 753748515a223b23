"""What the benchmark says of its models is so, on its own data and from each of its seeds."""

import pytest

from benchmarks.helpers.culprits import FIRST, HELD_OUT, MODELS, batches, num_wrong, samples
from benchmarks.helpers.layer_rules import is_finite, leaf_layers
from tests.helpers.faults.networks import Transformer


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_culprits_are_the_only_smallest_set(model, seed):
    planted = model.make(seed)
    *healthy, bad = batches(model, seed=seed, steps=FIRST + 1)
    assert all(is_finite(planted, batch, ()) for batch in healthy[:3])
    assert is_finite(planted, bad, model.culprits)
    for culprit in model.culprits:
        assert not is_finite(planted, bad, {*leaf_layers(planted)} - {culprit})


def test_there_are_models_of_every_kind():
    assert len({model.name for model in MODELS}) == 6
    assert sum(model.network is Transformer for model in MODELS) >= 2
    assert len(Transformer().blocks) >= 12


def test_batches_go_wrong_where_they_are_said_to_and_are_those_of_the_seed():
    model = MODELS[0]
    first, again, other = (batches(model, seed=seed, steps=80) for seed in (0, 0, 1))
    assert [step for step, batch in enumerate(first) if batch.knob[0] != 1] == [20, 70]
    assert num_wrong(80) == 2
    assert all(mine.inputs.equal(same.inputs) for mine, same in zip(first, again, strict=True))
    assert not any(mine.inputs.equal(others.inputs) for mine, others in zip(first, other, strict=True))


@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_there_are_samples_beyond_those_held_out_and_they_have_one_class_each(kind):
    inputs, targets = samples(kind)
    assert len(inputs) == len(targets) > 3 * HELD_OUT
    assert targets.sum(dim=1).eq(1).all()
    assert targets.sum(dim=0).gt(0).all()
