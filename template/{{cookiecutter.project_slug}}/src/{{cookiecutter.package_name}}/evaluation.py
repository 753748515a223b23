"""Testing a trained model again."""

from omegaconf import DictConfig

from {{cookiecutter.package_name}}.checkpoint import read_checkpoint
from {{cookiecutter.package_name}}.errors import BAD_REQUEST, refusing
from {{cookiecutter.package_name}}.launch import on_all_processes, start_other_processes
from {{cookiecutter.package_name}}.run import (
    announce,
    close_loggers,
    precision_name,
    prepare,
    to_floats,
    write_metrics,
)
from {{cookiecutter.package_name}}.run_card import recorded
from {{cookiecutter.package_name}}.terminal import show_results
from {{cookiecutter.package_name}}.trained_settings import take_settings


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
    with recorded(cfg) as card:
        with refusing(*BAD_REQUEST):
            checkpoint = read_checkpoint(cfg.ckpt_path)
            take_settings(cfg, checkpoint, cfg.ckpt_path)
            run = prepare(cfg, card, checkpoint)
            start_other_processes(run.trainer)
        announce(cfg, run)
        run.trainer.test(run.model, run.datamodule, verbose=False)
        metrics, baselines = to_floats(run.trainer.callback_metrics), run.datamodule.baselines()
        write_metrics(
            run,
            task=type(run.model).__name__,
            precision=precision_name(run.trainer),
            metrics=metrics,
            baselines=baselines,
            checkpoint=cfg.ckpt_path,
        )
        close_loggers(run.trainer)
        if run.trainer.is_global_zero:
            show_results(metrics, baselines, files=run.directory, checkpoint=cfg.ckpt_path)
    return metrics
