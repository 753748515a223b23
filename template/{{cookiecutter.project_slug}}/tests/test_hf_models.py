"""Models of the transformers library: built, trained, kept and refused, without a download."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.tasks.hf_causal_lm import HuggingFaceLanguageModel
from {{cookiecutter.package_name}}.tasks.hf_text_classification import HuggingFaceTextClassifier
from {{cookiecutter.package_name}}.training import train

transformers = pytest.importorskip("transformers")

GPT2 = {"n_layer": 1, "n_head": 2, "n_embd": 32}
BERT = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
XLNET = {"n_layer": 1, "n_head": 2, "d_model": 32, "d_inner": 64}
DISTILBERT = {"n_layers": 1, "n_heads": 2, "dim": 32, "hidden_dim": 64}
QUIET = ["logger=csv", "callbacks.progress_bar=null", "+trainer.enable_progress_bar=false", "trainer.max_epochs=1"]
SHORT = ["+trainer.limit_train_batches=2", "+trainer.limit_val_batches=1", "+trainer.limit_test_batches=2"]
MODELS = {
    "hf_causal_lm": ["data=lm", "data.block_size=16", "model.config.n_layer=1", "model.config.n_embd=32"],
    "hf_classifier": [
        "data=topics",
        "data.tokenizer=train",
        "data.num_buckets=300",
        "data.max_tokens=32",
        "model.config.n_layers=1",
        "model.config.dim=32",
        "model.config.hidden_dim=64",
    ],
}


def language_model(**settings: Any) -> HuggingFaceLanguageModel:
    """A tiny GPT-2 with the same weights each time."""
    torch.manual_seed(0)
    return HuggingFaceLanguageModel(
        **{"vocab_size": 300, "block_size": 16, "eos_token_id": 1, "model_type": "gpt2", "config": GPT2, **settings}
    )


def classifier(**settings: Any) -> HuggingFaceTextClassifier:
    """A tiny text classifier with the same weights each time."""
    torch.manual_seed(0)
    made = {"num_classes": 3, "vocab_size": 300, "max_tokens": 16, "pad_token_id": 0, "model_type": "distilbert"}
    return HuggingFaceTextClassifier(**{**made, "config": DISTILBERT, **settings})


def texts(lengths: list[int], width: int) -> dict[str, torch.Tensor]:
    """Ids with padding, the same ones whatever the width."""
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(2, 2 + width).repeat(len(lengths), 1)
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize(("model_type", "config"), [("distilbert", DISTILBERT), ("bert", BERT), ("gpt2", GPT2)])
def test_padding_has_no_influence(model_type: str, config: dict[str, int]) -> None:
    # Weights large enough for each token to matter.
    task = classifier(model_type=model_type, config={**config, "initializer_range": 0.5}).eval()
    alone = task(texts([5], 5))
    inputs = texts([5, 12], 12)
    padded = task(inputs)
    assert alone.shape == (1, 3)
    assert torch.allclose(alone[0], padded[0], atol=1e-4)
    assert not torch.allclose(padded[0], padded[1], atol=1e-2)
    if model_type != "gpt2":  # which does not look ahead
        unmasked = task({**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])})
        assert not torch.allclose(alone[0], unmasked[0], atol=1e-2)


@pytest.mark.parametrize(("model_type", "config"), [("gpt2", GPT2), ("llama", BERT), ("bert", BERT)])
def test_a_token_has_no_influence_on_earlier_predictions(model_type: str, config: dict[str, int]) -> None:
    task, tokens = language_model(model_type=model_type, config=config).eval(), torch.randint(0, 300, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 300
    before, after = task(tokens), task(changed)
    assert torch.allclose(before[:, :9], after[:, :9], atol=1e-6)
    assert not torch.allclose(before[:, 9:], after[:, 9:], atol=1e-3)


def test_bits_per_byte_of_guessing_and_of_padding() -> None:
    task = language_model().eval()
    tokens = torch.randint(0, 300, (8, 17))
    num_bytes = torch.full((8,), 32)
    columns = task.predict_step({"tokens": tokens, "num_bytes": num_bytes}, 0)
    # Sixteen tokens that stand for thirty-two bytes.
    assert columns["bits_per_byte"].mean().item() == pytest.approx(math.log2(300) / 2, abs=0.2)
    assert columns["prediction"].shape == (8, 16)
    short = torch.cat([tokens, torch.full((8, 5), -1)], dim=1)
    padded = task.predict_step([{"tokens": short, "num_bytes": num_bytes}, ["name"] * 8], 0)
    assert torch.allclose(padded["bits_per_byte"], columns["bits_per_byte"], atol=1e-5)
    assert torch.equal(padded["prediction"][:, :16], columns["prediction"])
    assert (padded["prediction"][:, 16:] == -1).all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("model", MODELS)
def test_short_training_and_checkpoint(
    config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, precision: str
) -> None:
    metrics = train(config("train", f"model={model}", *MODELS[model], f"precision={precision}", *QUIET, *SHORT))
    assert math.isfinite(metrics["test/loss"])

    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(tensor.dtype == torch.float32 for tensor in checkpoint["state_dict"].values() if tensor.ndim)
    # The settings in the checkpoint are enough: no name is looked up.
    for auto in ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification"):
        monkeypatch.setattr(getattr(transformers, auto), "from_pretrained", None)
    kind = {"hf_causal_lm": HuggingFaceLanguageModel, "hf_classifier": HuggingFaceTextClassifier}[model]
    again = kind(**{**checkpoint["hyper_parameters"], "name": "somewhere/else"})
    again.load_state_dict(checkpoint["state_dict"])
    assert dict(again.hparams) == {**checkpoint["hyper_parameters"], "name": "somewhere/else"}


def test_pretrained_weights_from_a_folder(tmp_path: Path) -> None:
    first = classifier()
    first.net.model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    settings = {"model_type": None, "config": None, "name": str(tmp_path / "model")}
    loaded = classifier(**settings, pretrained=True, vocab_size=290, num_classes=5)
    assert loaded.net.model.training
    trunk = {name: weight for name, weight in loaded.state_dict().items() if ".distilbert." in name}
    assert len(trunk) > 5
    for name, weight in trunk.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, first.state_dict()[name].float())
    assert loaded(texts([3], 4)).shape == (1, 5)
    fresh = classifier(**settings, vocab_size=400)
    assert fresh.net.model.config.vocab_size == 400
    assert fresh.net.model.config.dim == 32
    with pytest.raises(ValueError, match="has 301 ids, and model.name=.* knows 300: use its own, data.tokenizer="):
        classifier(**settings, pretrained=True, vocab_size=301)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt17"}, "model.model_type=gpt17 is unknown to transformers"),
    ({"config": {"layers": 3}}, "model.config.layers is not a setting of gpt2"),
    ({"config": {"vocab_size": 3}}, "model.config.vocab_size is not for you to set"),
    ({"pretrained": True}, "pretrained=true needs the name or folder of a model"),
    ({"name": "gpt2"}, "model.name=gpt2 and model.model_type=gpt2 came in: give one"),
    ({"block_size": 2000}, "sequences of 2000 tokens, and the model reads at most 1024"),
    ({"model_type": "distilbert", "config": None}, "distilbert does not work as AutoModelForCausalLM"),
    ({"model_type": "xlnet", "config": XLNET}, "xlnet sees the tokens that it is to predict: choose a causal one"),
    ({"model_type": "llama", "config": {**BERT, "num_key_value_heads": 3}}, "llama does not work with these settings"),
    ({"model_type": None, "config": None, "name": "./none"}, "model.name=./none is neither a folder nor a model"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        language_model(**settings)
