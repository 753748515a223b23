"""Write a trained model's predictions to a csv file: `python predict.py ckpt_path=...`."""

import hydra
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.entry_point import entry_point
from {{cookiecutter.package_name}}.prediction import predict


@entry_point
@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Predict the test split, one csv row per example."""
    predict(cfg)


if __name__ == "__main__":
    main()
