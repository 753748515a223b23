"""Train a model: `python train.py precision=bf16`, with any `group=option` or `key=value` from conf/."""

import hydra
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.entry_point import entry_point
from {{cookiecutter.package_name}}.training import train


@entry_point
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """Train, then test the best checkpoint."""
    train(cfg)


if __name__ == "__main__":
    main()
