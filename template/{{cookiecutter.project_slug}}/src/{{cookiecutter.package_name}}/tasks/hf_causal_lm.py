"""A causal language model of the transformers library."""

from collections.abc import Mapping
from typing import Any

from {{cookiecutter.package_name}}.models.hugging_face import (
    CausalLM,
    make_config,
    plain_config,
    rebuilt_config,
)
from {{cookiecutter.package_name}}.tasks.causal_language_model import CausalLanguageModel


class HuggingFaceLanguageModel(CausalLanguageModel):
    """A causal language model of the transformers library, judged by bits per byte.

    Args:
        vocab_size: number of tokens.
        block_size: longest sequence, in tokens; None: it is not checked.
        eos_token_id: the token between two documents; None if there is none.
        model_type: the architecture, such as gpt2; None: that of `name`.
        config: settings of the architecture.
        name: a model on the Hugging Face hub or in a folder; None: `model_type` tells the architecture.
        pretrained: start from its weights; otherwise weights are random.
        lr: highest learning rate.
        weight_decay: of the weight matrices.
        warmup_fraction: share of the steps in which the learning rate rises.
        built_config: of a checkpoint: all settings of the architecture, so that the five before it are not asked.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int | None = None,
        eos_token_id: int | None = None,
        model_type: str | None = None,
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
        pretrained: bool = False,
        lr: float = 3e-4,
        weight_decay: float = 0.1,
        warmup_fraction: float = 0.1,
        built_config: Mapping[str, Any] | None = None,
    ) -> None:
        tokens = {"eos_token_id": eos_token_id}
        if built_config is not None:
            built = rebuilt_config(built_config)
        else:
            built = make_config(model_type, config, name, pretrained, vocab_size, block_size, tokens)
        net = CausalLM(built, name if pretrained and built_config is None else None)
        super().__init__(net, lr, weight_decay, warmup_fraction)
        hyperparameters = {
            "vocab_size": vocab_size,
            "block_size": block_size,
            "eos_token_id": eos_token_id,
            "name": name,
            "lr": lr,
            "weight_decay": weight_decay,
            "warmup_fraction": warmup_fraction,
            "built_config": plain_config(built),
        }
        # Logged with the whole config by the run itself.
        self.save_hyperparameters(hyperparameters, logger=False)
