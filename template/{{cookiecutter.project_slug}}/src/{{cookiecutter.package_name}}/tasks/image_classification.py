"""Which class is this image?"""

from {{cookiecutter.package_name}}.models.mlp import MLP
from {{cookiecutter.package_name}}.tasks.classification import Classifier


class ImageClassifier(Classifier):
    """A perceptron on the pixels.

    Args:
        num_classes: number of classes.
        num_pixels: pixels per image, over all channels.
        width: units per hidden layer.
        dropout: share of hidden units dropped in training.
        lr: highest learning rate.
        weight_decay: of the weight matrices.
        warmup_fraction: share of the steps in which the learning rate rises.
        label_smoothing: share of the target that is spread over all classes in training.
    """

    def __init__(
        self,
        num_classes: int = 10,
        num_pixels: int = 64,
        width: int = 256,
        dropout: float = 0.2,
        lr: float = 3e-3,
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.1,
        label_smoothing: float = 0.1,
    ) -> None:
        net = MLP(num_pixels, width, num_classes, dropout)
        super().__init__(net, num_classes, lr, weight_decay, warmup_fraction, label_smoothing)
        # Logged with the whole config by the run itself.
        self.save_hyperparameters(logger=False)
