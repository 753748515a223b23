"""What a run shows: its settings at the start, its results at the end, and nothing that needs no action."""

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

#: How test metrics are called on screen, and how many digits say something.
TITLES = {"test/acc": "test accuracy", "test/bits_per_byte": "test bits per byte"}


def quieten() -> None:
    """Hide messages that ask for nothing."""
    # "GPU available: False", "Seed set to 0", tips: the config tree says it all. Warnings still come through.
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Advises worker processes, which are slower than no worker for data in memory.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # Advises to log more often; the epochs of small data have fewer steps than log_every_n_steps.
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
    # Lightning's own use of torch.utils._pytree (2.6.6 with torch 2.13); nothing that this project could change.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
    # A resumed run has a directory of its own, and looks for the best checkpoint among its own epochs.
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    # A run that goes on in its own directory finds its own checkpoints there.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # Tasks have the hook for trainer=fsdp2 alone, with which there is no average (conf/callbacks/ema.yaml).
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that overrides")
    # overfit_batches turns shuffling off, which is what debug=overfit wants.
    warnings.filterwarnings("ignore", message=".*You requested to overfit but enabled .* shuffling")


def show_config(cfg: DictConfig, title: str, run_dir: Path) -> None:
    """Print the settings as a tree and save it as config_tree.log in the run's directory."""
    tree = Tree(f"[bold]{title}")
    for key, node in cfg.items():
        name = str(key)
        if not isinstance(node, DictConfig):
            tree.add(f"[bold]{name}[/bold]: {node}")
            continue
        if name == "trainer" and node.get("plugins") == [cfg.get("precision")]:
            node = OmegaConf.merge(node, {"plugins": ["\\${precision}"]})  # which has a branch of its own
        text = OmegaConf.to_yaml(node, resolve=True).rstrip()
        if name != "paths":
            text = text.replace(cfg.paths.run_dir, "${paths.run_dir}")
        tree.add(f"[bold]{name}").add(Syntax(text, "yaml", background_color="default", word_wrap=True))
    Console().print(tree)
    with open(run_dir / "config_tree.log", "w", encoding="utf-8") as file:
        Console(file=file, width=120).print(tree)


def show_results(
    metrics: Mapping[str, float], baselines: Mapping[str, float], precision: str = "", **places: str | Path
) -> None:
    """Print a run's result with the baselines beside it, what its precision did, and where its files lie.

    Args:
        metrics: test metrics, by the name under which they were logged.
        baselines: values of simple methods, in the unit of the metric in `TITLES`.
        precision: the precision summary in a line; empty where nothing was trained.
        **places: files and directories to name, by title.
    """
    console = Console(soft_wrap=True, highlight=False)
    for name, title in TITLES.items():
        if name in metrics:
            results = Table("", title)
            results.columns[1].justify = "right"
            results.add_row("[bold green]this run", f"[bold green]{metrics[name]:.4f}")
            for baseline, value in baselines.items():
                results.add_row(baseline, f"{value:.4f}")
            console.print(results)
    width = max(map(len, [*places, "precision"]))
    if precision:
        console.print(Text.assemble(("precision".ljust(width), "bold"), "  ", precision))
    for title, place in places.items():
        inside = Path(place).absolute().is_relative_to(Path.cwd())
        shown = os.path.relpath(place) if inside else str(place)
        console.print(Text.assemble((title.ljust(width), "bold"), "  ", shown))
