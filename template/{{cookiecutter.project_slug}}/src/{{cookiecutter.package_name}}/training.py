"""Training."""

from mp_plugin.errors import MpPluginError
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.errors import BAD_REQUEST, refusing
from {{cookiecutter.package_name}}.launch import on_all_processes, start_other_processes
from {{cookiecutter.package_name}}.resume import finished_already, resume
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
from {{cookiecutter.package_name}}.run_card import recorded
from {{cookiecutter.package_name}}.terminal import show_results
from {{cookiecutter.package_name}}.trained_settings import refuse_as_trained


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
        refuse_as_trained(cfg)
        done = finished_already(cfg)
    if done is not None:
        return done
    with recorded(cfg) as card:
        with refusing(*BAD_REQUEST):
            run = prepare(cfg, card)
            checkpoint = resume(cfg, run, card)
            start_other_processes(run.trainer)
        announce(cfg, run)
        # What only the plugin can tell, such as a precision that the device does not have.
        with refusing(MpPluginError):
            run.trainer.fit(run.model, run.datamodule, ckpt_path=checkpoint)
        summary = precision_summary(run.trainer)
        best = getattr(run.trainer.checkpoint_callback, "best_model_path", "")
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
        card.update(precision=summary)
        close_loggers(run.trainer)
        if run.trainer.is_global_zero:
            show_results(
                metrics, baselines, precision_line(run.trainer), files=run.directory, checkpoint=best or "none"
            )
    return metrics
