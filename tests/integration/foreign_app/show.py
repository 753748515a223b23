"""Print the config that the app would run with, without importing Lightning."""

import json

import hydra
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    print(json.dumps(OmegaConf.to_container(cfg)))


if __name__ == "__main__":
    main()
