"""A small convolutional network for small images."""

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three stages of two convolutions, each stage at half the size of the one before it, then an average.

    Group norm serves batches of any size, and looks the same in training and testing.

    Args:
        num_channels: channels of an image.
        width: channels of the first stage; a multiple of 8. The others have two and four times as many.
        num_outputs: numbers to predict.
        dropout: share of the averages dropped in training.
    """

    def __init__(self, num_channels: int, width: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        if width % 8:
            raise ValueError(f"width={width} is out of range: it must be a multiple of 8.")
        stages: list[nn.Module] = []
        inputs = num_channels
        for outputs in (width, 2 * width, 4 * width):
            stages += [*_convolution(inputs, outputs, stride=1), *_convolution(outputs, outputs, stride=2)]
            inputs = outputs
        self.features = nn.Sequential(*stages)
        average = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)]
        self.head = nn.Sequential(*average, nn.Linear(inputs, num_outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Images of shape [batch, channels, height, width] to [batch, num_outputs]."""
        return self.head(self.features(images))


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.GELU()]
