"""A text classifier of the transformers library."""

from collections.abc import Mapping
from typing import Any

from {{cookiecutter.package_name}}.models.hugging_face import (
    SequenceClassifier,
    make_config,
    plain_config,
    rebuilt_config,
)
from {{cookiecutter.package_name}}.tasks.classification import Classifier


class HuggingFaceTextClassifier(Classifier):
    """A classifier of whole texts of the transformers library.

    Args:
        num_classes: number of classes.
        vocab_size: number of tokens.
        max_tokens: longest text, in tokens; None: it is not checked.
        pad_token_id: the token behind shorter texts.
        eos_token_id: the token after a text; None if there is none.
        model_type: the architecture, such as distilbert; None: that of `name`.
        config: settings of the architecture.
        name: a model on the Hugging Face hub or in a folder; None: `model_type` tells the architecture.
        pretrained: start from its weights, with a new classifier on top; otherwise all weights are random.
        lr: highest learning rate.
        weight_decay: of the weight matrices.
        warmup_fraction: share of the steps in which the learning rate rises.
        label_smoothing: share of the target that is spread over all classes in training.
        built_config: of a checkpoint: all settings of the architecture, so that those from it are not asked.
    """

    def __init__(
        self,
        num_classes: int,
        vocab_size: int,
        max_tokens: int | None = None,
        pad_token_id: int | None = None,
        eos_token_id: int | None = None,
        model_type: str | None = None,
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        pretrained: bool = False,
        lr: float = 3e-4,
        weight_decay: float = 0.01,
        warmup_fraction: float = 0.1,
        label_smoothing: float = 0.0,
        built_config: Mapping[str, Any] | None = None,
    ) -> None:
        tokens = {"pad_token_id": pad_token_id, "eos_token_id": eos_token_id}
        if built_config is not None:
            built = rebuilt_config(built_config)
        else:
            built = make_config(
                model_type, config, name, pretrained, vocab_size, max_tokens, tokens, num_labels=num_classes
            )
        net = SequenceClassifier(built, name if pretrained and built_config is None else None)
        super().__init__(net, num_classes, lr, weight_decay, warmup_fraction, label_smoothing)
        hyperparameters = {
            "num_classes": num_classes,
            "vocab_size": vocab_size,
            "max_tokens": max_tokens,
            "pad_token_id": pad_token_id,
            "eos_token_id": eos_token_id,
            "name": name,
            "lr": lr,
            "weight_decay": weight_decay,
            "warmup_fraction": warmup_fraction,
            "label_smoothing": label_smoothing,
            "built_config": plain_config(built),
        }
        # Logged with the whole config by the run itself.
        self.save_hyperparameters(hyperparameters, logger=False)
