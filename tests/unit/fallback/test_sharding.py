"""What is refused takes ranks to see: tests/integration/test_islands_on_ranks.py."""

import torch
from torch.nn import Linear, Sequential

from mp_plugin.fallback.sharding import refuse_mixed_units, refuse_sharded_half


def test_a_model_that_is_not_sharded_has_nothing_to_refuse() -> None:
    model = Sequential(Linear(2, 2), Linear(2, 2).to(torch.bfloat16))
    refuse_sharded_half(model, model)
    refuse_sharded_half(model, model, ["0", "1", "not there"])
    refuse_mixed_units(model)
