"""Training."""

from mp_plugin.errors import MpPluginError
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.checkpoint import (
    check_epochs_left,
    check_weights_fit,
    read_checkpoint,
)
from {{cookiecutter.package_name}}.errors import BAD_REQUEST, refusing
from {{cookiecutter.package_name}}.launch import on_all_processes, start_other_processes
from {{cookiecutter.package_name}}.run import (
    announce,
    close_loggers,
    precision_line,
    precision_name,
    precision_summary,
    prepare,
    to_floats,
    write_metrics,
)
from {{cookiecutter.package_name}}.terminal import show_results


@on_all_processes
def train(cfg: DictConfig) -> dict[str, float]:
    """Train a model, test its best checkpoint, and leave metrics.json in the run's directory.

    Args:
        cfg: composed from conf/train.yaml.

    Returns:
        The test metrics, by name.

    Raises:
        Refusal: before training starts, if a setting is not acceptable.
    """
    with refusing(*BAD_REQUEST):
        run = prepare(cfg)
        if cfg.ckpt_path:
            checkpoint = read_checkpoint(cfg.ckpt_path, type(run.model).__name__)
            check_weights_fit(run.model, checkpoint, cfg.ckpt_path)
            check_epochs_left(run.trainer.max_epochs, checkpoint, cfg.ckpt_path)
        start_other_processes(run.trainer)
    announce(cfg, run)
    # What only the plugin can tell, such as a precision that the device does not have.
    with refusing(MpPluginError):
        run.trainer.fit(run.model, run.datamodule, ckpt_path=cfg.ckpt_path)
    summary = precision_summary(run.trainer)
    checkpoint_callback = run.trainer.checkpoint_callback
    best = getattr(checkpoint_callback, "best_model_path", "")
    run.trainer.test(run.model, run.datamodule, ckpt_path=best or None, verbose=False)
    metrics, baselines = to_floats(run.trainer.callback_metrics), run.datamodule.baselines()
    write_metrics(
        run,
        task=type(run.model).__name__,
        seed=cfg.seed,
        precision=precision_name(run.trainer),
        metrics=metrics,
        baselines=baselines,
        precision_summary=summary,
        checkpoint=best,
    )
    close_loggers(run.trainer)
    if run.trainer.is_global_zero:
        show_results(metrics, baselines, precision_line(run.trainer), files=run.directory, checkpoint=best or "none")
    return metrics
