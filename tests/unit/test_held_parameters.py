import torch
from torch import nn

from mp_plugin import AdaptivePrecision
from mp_plugin.held_parameters import held_gradients
from tests.helpers.training import Regression, quiet_trainer, regression_data


def test_a_process_alone_answers_for_the_gradients_of_the_optimizer_that_is_asked() -> None:
    class Two(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.idle = nn.Linear(2, 2)
            self.found: list[list[tuple[str, int]]] = []

        def configure_optimizers(self):
            parts = (self.net[0].parameters(), [*self.net[2].parameters(), *self.idle.parameters()])
            return [torch.optim.SGD(part, lr=0.1) for part in parts]

        def training_step(self, batch, batch_idx):
            self.manual_backward(nn.functional.mse_loss(self.net(batch[0]), batch[1]))
            for optimizer in self.optimizers():
                self.found.append([(layer, grad.numel()) for layer, grad in held_gradients(self, optimizer.optimizer)])
                optimizer.step()

    model = Two()
    quiet_trainer(plugins=[AdaptivePrecision("fp32")], max_steps=2).fit(model, regression_data())
    first, second = model.found[:2]
    assert first == [("net.0", 8 * 16), ("net.0", 16)]
    assert second == [("net.2", 16), ("net.2", 1)]  # none of a layer without gradients
