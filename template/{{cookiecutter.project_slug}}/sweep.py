"""Search for good settings: `python sweep.py name=first`; what is varied stands in conf/search/."""

import hydra
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.entry_point import entry_point
from {{cookiecutter.package_name}}.errors import BAD_REQUEST, refusing


@entry_point
@hydra.main(version_base="1.3", config_path="conf", config_name="sweep")
def main(cfg: DictConfig) -> None:
    """Run trials until the study has as many as asked for."""
    with refusing(*BAD_REQUEST):
        try:
            from {{cookiecutter.package_name}}.sweep.app import sweep
        except ModuleNotFoundError as error:
            if error.name not in ("optuna", "plotly"):
                raise
            raise ValueError(f'Sweeps need {error.name}: pip install -e ".[sweep]".') from error
        sweep(cfg)


if __name__ == "__main__":
    main()
