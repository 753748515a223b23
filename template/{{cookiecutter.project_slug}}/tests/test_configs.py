"""Every option of every group composes, and what it describes can be built."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from {{cookiecutter.package_name}}.instantiate import instantiate_each, instantiate_trusted
from {{cookiecutter.package_name}}.run import fill_from_data, require_filled

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("data", "model", "trainer", "callbacks", "logger", "experiment", "debug")
# What is as trained takes a checkpoint; test_eval_and_predict.py has some.
PATHS = [(group, path) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
OPTIONS = [(group, path.stem) for group, path in PATHS if path.stem != "as_trained"]
#: What data that are not there would tell a model.
FACTS = {"num_classes": 3, "num_channels": 3, "image_size": 8, "vocab_size": 300, "pad_token_id": 0, "eos_token_id": 1}
PRECISIONS = ("fp32", "bf16", "fp16", "bf16_true", "fp16_true")


def build(cfg: DictConfig) -> Trainer:
    """Build all parts of a run; the trainer knows the callbacks and loggers."""
    datamodule = instantiate_trusted(cfg.data)
    assert isinstance(datamodule, LightningDataModule)
    if "path" in cfg.data:  # the user's own data
        with pytest.raises(ValueError, match="data.path is missing: "):
            datamodule.setup()
        fill_from_data(cfg.model, FACTS)
    else:
        datamodule.setup()
        fill_from_data(cfg.model, datamodule.facts())
    assert isinstance(instantiate_trusted(cfg.model), LightningModule)
    return instantiate_trusted(
        cfg.trainer, logger=instantiate_each(cfg.logger), callbacks=instantiate_each(cfg.get("callbacks"))
    )


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_builds(config: Callable[..., DictConfig], group: str, option: str) -> None:
    if (group == "logger" and option != "csv") or option == "timm":
        pytest.importorskip(option)
    if option.startswith("hf_") and group != "data":
        pytest.importorskip("transformers")
    needs = {
        "gpt": ["data=lm"],
        "text_classifier": ["data=topics"],
        "lm": ["model=gpt"],
        "topics": ["model=text_classifier"],
        "text_files": ["model=gpt"],
        "text_table": ["model=text_classifier"],
        "hf_text": ["model=gpt"],
        "hf_labelled_text": ["model=text_classifier"],
        "hf_causal_lm": ["data=lm"],
        "hf_classifier": ["data=topics"],
    }
    trainer = build(config("train", "logger=csv", *needs.get(option, []), f"{group}={option}"))
    if group == "logger":
        assert type(trainer.logger).__name__.lower() == f"{option}logger"


@pytest.mark.parametrize("script", ["train", "eval", "predict"])
def test_every_script_takes_every_experiment(config: Callable[..., DictConfig], script: str, experiment: str) -> None:
    cfg = config(script, "logger=csv", "precision=bf16", f"experiment={experiment}")
    assert cfg.task_name == script
    build(cfg)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_reaches_the_trainer(config: Callable[..., DictConfig], precision: str) -> None:
    trainer = build(config("train", "logger=csv", f"precision={precision}"))
    assert type(trainer.precision_plugin).__name__ == "AdaptivePrecision"
    number_format = precision.split("_")[0].replace("fp", "")
    assert str(trainer.precision_plugin.precision).startswith(number_format)


def test_precisions_come_from_the_plugin() -> None:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    assert set(PRECISIONS) <= set(hydra.config_loader.get_group_options("precision"))


def test_debug_wins_over_experiment(config: Callable[..., DictConfig], experiment: str) -> None:
    cfg = config("train", f"experiment={experiment}", "debug=fast")
    assert cfg.trainer.max_epochs == 1
    assert cfg.trainer.limit_train_batches == 2


def test_run_directory_is_the_only_place_written_to(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    cfg = config("train")
    assert cfg.callbacks.model_checkpoint.dirpath == str(tmp_path / "run" / "checkpoints")
    loggers = OmegaConf.to_container(cfg.logger, resolve=True)
    assert all(str(tmp_path / "run") in str(logger) for logger in loggers.values())


def test_model_that_does_not_suit_the_data_is_named(config: Callable[..., DictConfig]) -> None:
    model = "{{ 'gpt' if cookiecutter.task == 'nlp' else 'mlp' }}"
    cfg = config("train", "logger=csv", f"model={model}")
    with pytest.raises(ValueError, match=r"needs model\.\w+.*, which \w+DataModule does not tell: choose a model"):
        require_filled(cfg)
    fill_from_data(cfg.model, FACTS)
    require_filled(cfg)
