"""Somebody else's training script: it knows Hydra and Lightning, and nothing of mp_plugin."""

import hydra
import lightning.pytorch as pl
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    pl.seed_everything(cfg.seed)
    model = hydra.utils.instantiate(cfg.model)
    trainer = hydra.utils.instantiate(cfg.trainer)
    trainer.fit(model)
    plugin, checkpoint_io = trainer.precision_plugin, trainer.strategy.checkpoint_io
    print(f"{type(plugin).__name__} {model.compute_dtype} {type(checkpoint_io).__name__}")


if __name__ == "__main__":
    main()
