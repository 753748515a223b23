"""Which class is this image?"""

from {{cookiecutter.package_name}}.models.mlp import MLP
from {{cookiecutter.package_name}}.models.small_cnn import SmallCNN
from {{cookiecutter.package_name}}.models.timm_model import make_timm_model
from {{cookiecutter.package_name}}.tasks.classification import Classifier


class ImageClassifier(Classifier):
    """A perceptron on the pixels.

    Args:
        num_classes: number of classes.
        num_channels: channels of an image.
        image_size: height and width of an image in pixels.
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
        num_channels: int = 1,
        image_size: int = 8,
        width: int = 256,
        dropout: float = 0.2,
        lr: float = 3e-3,
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.1,
        label_smoothing: float = 0.1,
    ) -> None:
        net = MLP(num_channels * image_size**2, width, num_classes, dropout)
        super().__init__(net, num_classes, lr, weight_decay, warmup_fraction, label_smoothing)
        # Logged with the whole config by the run itself.
        self.save_hyperparameters(logger=False)


class CNNImageClassifier(Classifier):
    """A small convolutional network.

    Args:
        num_classes: number of classes.
        num_channels: channels of an image.
        width: channels of the first convolution; a multiple of 8.
        dropout: share of the features dropped before the last layer.
        lr: highest learning rate.
        weight_decay: of the weight matrices.
        warmup_fraction: share of the steps in which the learning rate rises.
        label_smoothing: share of the target that is spread over all classes in training.
    """

    def __init__(
        self,
        num_classes: int = 10,
        num_channels: int = 3,
        width: int = 32,
        dropout: float = 0.1,
        lr: float = 3e-3,
        weight_decay: float = 0.05,
        warmup_fraction: float = 0.1,
        label_smoothing: float = 0.1,
    ) -> None:
        net = SmallCNN(num_channels, width, num_classes, dropout)
        super().__init__(net, num_classes, lr, weight_decay, warmup_fraction, label_smoothing)
        self.save_hyperparameters(logger=False)


class TimmImageClassifier(Classifier):
    """Any model of timm.

    Args:
        name: of the model, as `timm.list_models()` has it.
        pretrained: begin with downloaded weights; a model that is rebuilt from a checkpoint never does.
        num_classes: number of classes.
        num_channels: channels of an image.
        image_size: height and width of an image in pixels.
        dropout: share of the features dropped before the last layer.
        lr: highest learning rate.
        weight_decay: of the weight matrices.
        warmup_fraction: share of the steps in which the learning rate rises.
        label_smoothing: share of the target that is spread over all classes in training.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        num_classes: int = 10,
        num_channels: int = 3,
        image_size: int = 224,
        dropout: float = 0.0,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup_fraction: float = 0.1,
        label_smoothing: float = 0.1,
    ) -> None:
        net = make_timm_model(name, pretrained, num_channels, num_classes, image_size, dropout)
        super().__init__(net, num_classes, lr, weight_decay, warmup_fraction, label_smoothing)
        self.save_hyperparameters(ignore=["pretrained"], logger=False)
