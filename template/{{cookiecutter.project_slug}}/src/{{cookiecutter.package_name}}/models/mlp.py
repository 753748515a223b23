"""A perceptron for small images."""

from torch import Tensor, nn


class MLP(nn.Module):
    """Two hidden layers with layer norm.

    Args:
        num_inputs: numbers per example.
        width: units per hidden layer.
        num_outputs: numbers to predict.
        dropout: share of hidden units dropped in training.
    """

    def __init__(self, num_inputs: int, width: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            *_hidden(num_inputs, width, dropout),
            *_hidden(width, width, dropout),
            nn.Linear(width, num_outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images of any shape [batch, ...] to [batch, num_outputs]."""
        return self.layers(images)


def _hidden(num_inputs: int, width: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(num_inputs, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)]
