"""Networks of the transformers library: from a config, or with pretrained weights."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from {{cookiecutter.package_name}}.packages import import_extra

#: Settings that come from the data or from this project, and so are not the user's to give.
RESERVED = ("vocab_size", "num_labels", "model_type")

#: Where transformers lists the architectures of its auto classes.
NAMES = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}


class CausalLM(nn.Module):
    """A causal language model.

    Args:
        config: what `make_config` returned.
        name: where the weights come from, if not from a random generator.
    """

    def __init__(self, config: Any, name: str | None = None) -> None:
        super().__init__()
        config.use_cache = False  # of no use in training, and it takes memory
        if hasattr(config, "is_decoder"):  # without which bert and its kin look ahead
            config.is_decoder = True
        self.model = make_model("AutoModelForCausalLM", config, name)
        require_causal(self.model, config.model_type)

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids [batch, time] to logits of the next one, [batch, time, vocab_size]."""
        return self.model(input_ids=tokens).logits


class SequenceClassifier(nn.Module):
    """A classifier of whole texts.

    Args:
        config: what `make_config` returned.
        name: where the weights come from, if not from a random generator; a new classifier stands on top of them.
    """

    def __init__(self, config: Any, name: str | None = None) -> None:
        super().__init__()
        self.model = make_model("AutoModelForSequenceClassification", config, name)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """{"input_ids", "attention_mask"} of shape [batch, time] to logits [batch, classes]."""
        return self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits


def make_config(
    model_type: str | None,
    settings: Mapping[str, Any] | None,
    name: str | None,
    pretrained: bool,
    vocab_size: int,
    max_tokens: int | None,
    special_tokens: Mapping[str, int | None],
    **more: Any,
) -> Any:
    """The config of a network that fits the data.

    Args:
        model_type: what transformers calls the architecture, such as gpt2; None: that of `name`.
        settings: of the architecture, by the names that transformers gives them.
        name: a model on the Hugging Face hub or in a folder, whose config is the start; None: the defaults.
        pretrained: whether its weights are wanted, too, which fixes the size of the vocabulary.
        vocab_size: ids of the data.
        max_tokens: the longest sequence of the data.
        special_tokens: ids of the data by name, such as pad_token_id; None where there is none.
        **more: other settings, such as num_labels.

    Raises:
        ValueError: if there is no such model or setting, or it does not fit the data.
    """
    library = import_extra("transformers", "transformers")
    settings = dict(settings or {})
    if pretrained and name is None:
        raise ValueError("pretrained=true needs the name or folder of a model: model.name=...")
    if (name is None) == (model_type is None):
        raise ValueError(
            f"model.name={name} and model.model_type={model_type} came in: give one of them, the other is null."
        )
    for key in RESERVED:
        if key in settings:
            raise ValueError(f"model.config.{key} is not for you to set: it follows from the data and model_type.")
    if name is None:
        start = library.AutoConfig.for_model(known_type(library, model_type))
    else:
        start = from_hub(library.AutoConfig, name)
    for key in settings:
        if not hasattr(start, key):
            raise ValueError(f"model.config.{key} is not a setting of {start.model_type}.")
    if pretrained:
        config = from_hub(library.AutoConfig, name, **settings, **more)
        if config.vocab_size < vocab_size:
            raise ValueError(
                f"The tokenizer of the data has {vocab_size} ids, and model.name={name} knows {config.vocab_size}: "
                f"use its own, data.tokenizer={name}."
            )
        special_tokens = {
            key: value
            for key, value in special_tokens.items()
            if getattr(config, key, None) is None and value is not None
        }
        config.update(special_tokens)
    else:
        # The ids of the defaults belong to another vocabulary.
        no_tokens = {"bos_token_id": special_tokens.get("eos_token_id"), "eos_token_id": None, "pad_token_id": None}
        own = {**no_tokens, **special_tokens, **settings, **more, "vocab_size": vocab_size}
        # Of the architecture's defaults some follow from others, such as the heads of keys from those of queries.
        given = {} if name is None else changed(start)
        config = library.AutoConfig.for_model(start.model_type, **{**given, **own})
    check_length(config, max_tokens)
    return config


def changed(config: Any) -> dict[str, Any]:
    """What a config has that its architecture does not have by itself."""
    return {
        key: value for key, value in config.to_diff_dict().items() if key not in ("model_type", "transformers_version")
    }


def known_type(library: Any, model_type: str | None) -> str:
    """An architecture's name, if transformers has it.

    Raises:
        ValueError: if not.
    """
    if model_type not in library.models.auto.configuration_auto.CONFIG_MAPPING:
        raise ValueError(f"model.model_type={model_type} is unknown to transformers; gpt2 and distilbert are examples.")
    return str(model_type)


def from_hub(kind: Any, name: str | None, **settings: Any) -> Any:
    """A config from the hub, its cache or a folder.

    Raises:
        ValueError: if there is none.
    """
    try:
        return kind.from_pretrained(name, **settings)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"model.name={name} is neither a folder nor a model that the hub gives: {first}") from error


def check_length(config: Any, max_tokens: int | None) -> None:
    """Check that a network has a position for every token of the longest sequence.

    Raises:
        ValueError: if it has fewer.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions < 0 or max_tokens is None:  # xlnet has -1, for as many as there are
        return
    if "roberta" in config.model_type:  # its positions start behind that of padding
        positions -= (config.pad_token_id or 0) + 1
    if max_tokens > positions:
        raise ValueError(
            f"The data have sequences of {max_tokens} tokens, and the model reads at most {positions}: "
            "set data.block_size or data.max_tokens, or the positions in model.config."
        )


def rebuilt_config(plain: Mapping[str, Any]) -> Any:
    """The config that `plain_config` wrote down."""
    library = import_extra("transformers", "transformers")
    settings = {key: value for key, value in plain.items() if key not in ("model_type", "transformers_version")}
    return library.AutoConfig.for_model(plain["model_type"], **settings)


def plain_config(config: Any) -> dict[str, Any]:
    """A config as plain values, so that it can stand in a checkpoint."""
    plain: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return plain


def make_model(kind: str, config: Any, name: str | None) -> nn.Module:
    """A network in 32 bit, ready for training.

    Args:
        kind: an auto class of transformers.
        config: its config.
        name: where its weights come from; None: from the random generator.

    Raises:
        ValueError: if the architecture cannot do that, or there are no such weights.
    """
    library = import_extra("transformers", "transformers")
    if config.model_type not in getattr(library.models.auto.modeling_auto, NAMES[kind]):
        raise ValueError(f"{name or config.model_type} does not work as {kind}: {config.model_type} has none.")
    auto = getattr(library, kind)
    try:
        if name is None:
            model = auto.from_config(config)
        else:
            # Another number of classes makes a new classifier instead of an error.
            model = auto.from_pretrained(name, config=config, ignore_mismatched_sizes=True)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name or config.model_type} does not work as {kind}: {first}") from error
    # Pretrained weights come in the format they were stored in, and as if for evaluation.
    network: nn.Module = model.float().train()
    return network


def require_causal(model: nn.Module, model_type: str) -> None:
    """Check that no token has an influence on what is predicted from those before it.

    Args:
        model: takes ids and returns logits.
        model_type: what transformers calls its architecture.

    Raises:
        ValueError: if one has, as it would make the task trivial, or if the network cannot take tokens at all.
    """
    try:
        with torch.no_grad():
            first, second = model.eval()(input_ids=torch.tensor([[0, 0], [0, 1]])).logits[:, 0]
    except RuntimeError as error:
        raise ValueError(f"{model_type} does not work with these settings: {' '.join(str(error).split())}") from error
    model.train()
    if (first - second).abs().max() > 1e-5 * first.abs().max():
        raise ValueError(f"{model_type} sees the tokens that it is to predict: choose a causal one, such as gpt2.")
