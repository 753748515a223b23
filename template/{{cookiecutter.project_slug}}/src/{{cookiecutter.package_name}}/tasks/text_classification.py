"""Which class is this passage of text?"""

from {{cookiecutter.package_name}}.models.bag_of_words import BagOfWords
from {{cookiecutter.package_name}}.tasks.classification import Classifier


class TextClassifier(Classifier):
    """A bag of hashed words and word pairs.

    Args:
        num_classes: number of classes.
        vocab_size: ids of words or tokens, 0 (no word) included.
        embedding_dim: numbers per word.
        hidden_dim: units of the hidden layer.
        dropout: share of units dropped in training, before and after the hidden layer.
        lr: highest learning rate.
        weight_decay: of the weight matrices.
        warmup_fraction: share of the steps in which the learning rate rises.
    """

    def __init__(
        self,
        num_classes: int = 4,
        vocab_size: int = 16384,
        embedding_dim: int = 64,
        hidden_dim: int = 64,
        dropout: float = 0.5,
        lr: float = 5e-3,
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.1,
    ) -> None:
        net = BagOfWords(vocab_size, embedding_dim, hidden_dim, num_classes, dropout)
        super().__init__(net, num_classes, lr, weight_decay, warmup_fraction)
        # Logged with the whole config by the run itself.
        self.save_hyperparameters(logger=False)
