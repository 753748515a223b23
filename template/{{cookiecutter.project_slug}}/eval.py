"""Test a trained model again: `python eval.py ckpt_path=outputs/train/runs/.../checkpoints/last.ckpt`."""

import hydra
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.entry_point import entry_point
from {{cookiecutter.package_name}}.evaluation import evaluate


@entry_point
@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    """Test one checkpoint on the test split."""
    evaluate(cfg)


if __name__ == "__main__":
    main()
