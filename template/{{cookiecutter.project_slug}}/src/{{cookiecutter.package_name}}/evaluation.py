"""Testing a trained model again."""

from lightning.pytorch import LightningModule
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.checkpoint import read_checkpoint
from {{cookiecutter.package_name}}.errors import BAD_REQUEST, refusing
from {{cookiecutter.package_name}}.launch import on_all_processes, start_other_processes
from {{cookiecutter.package_name}}.run import (
    Run,
    announce,
    close_loggers,
    precision_name,
    prepare,
    to_floats,
    write_metrics,
)
from {{cookiecutter.package_name}}.terminal import show_results


@on_all_processes
def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Test a checkpoint on the test split, and leave metrics.json in the run's directory.

    Args:
        cfg: composed from conf/eval.yaml.

    Returns:
        The test metrics, by name.

    Raises:
        Refusal: if a setting is not acceptable.
    """
    with refusing(*BAD_REQUEST):
        run = prepare(cfg)
        model = trained_model(run, cfg.ckpt_path)
        start_other_processes(run.trainer)
    announce(cfg, run)
    run.trainer.test(model, run.datamodule, verbose=False)
    metrics, baselines = to_floats(run.trainer.callback_metrics), run.datamodule.baselines()
    write_metrics(
        run,
        task=type(model).__name__,
        precision=precision_name(run.trainer),
        metrics=metrics,
        baselines=baselines,
        checkpoint=cfg.ckpt_path,
    )
    close_loggers(run.trainer)
    if run.trainer.is_global_zero:
        show_results(metrics, baselines, files=run.directory, checkpoint=cfg.ckpt_path)
    return metrics


def trained_model(run: Run, path: str | None) -> LightningModule:
    """The model of a checkpoint, with the settings that are stored in it.

    Raises:
        ValueError: if the checkpoint is none of the run's task.
    """
    checkpoint = read_checkpoint(path, type(run.model).__name__)
    model = type(run.model)(**checkpoint["hyper_parameters"])
    model.load_state_dict(checkpoint["state_dict"])
    return model
