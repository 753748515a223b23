"""The share of training time that a generated project spends waiting for data.

Generates a project, and a folder of small PNG files, both in a temporary folder. Then trains with the project's own
parts and lets `CostMeter` measure: the digits, which are in memory, with the perceptron, and the image folder with the
small convolutional network, each without workers and with some. Every sample is a fresh process. The first epoch
counts, too, and with it the start of the workers. What reading all files before training takes is measured apart.

    python benchmarks/data_wait.py [--files 10000] [--rounds 3]
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from cookiecutter.main import cookiecutter
from helpers.harness import circumstances, print_table, show_spread, turns, write
from PIL import Image

ROOT = Path(__file__).parents[1]
PIXELS, CLASSES = 32, 10
WORKERS = (0, 1, 2)
RUNS = {
    "digits": ["experiment=digits", "trainer.max_epochs=20"],
    "image folder": ["experiment=image_folder", f"data.image_size={PIXELS}", "trainer.max_epochs=2"],
}

TRAIN = """
import json, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from hydra import compose, initialize_config_dir
from mp_plugin.cost_meter import CostMeter
from my_project.run import prepare
with initialize_config_dir(version_base="1.3", config_dir=str(Path("conf").resolve())):
    cfg = compose("train", sys.argv[2:])
started = time.perf_counter()
run = prepare(cfg)
prepared = time.perf_counter() - started
run.trainer.callbacks = [*run.trainer.callbacks, CostMeter(sys.argv[1])]
run.trainer.fit(run.model, run.datamodule)
cost = json.loads((Path(sys.argv[1]) / "telemetry" / "cost.json").read_text())
print(json.dumps({"prepare_seconds": prepared, **cost}))
"""


def write_images(folder: Path, files: int) -> int:
    """Write small PNG files of noise over a colour that tells the class; return their bytes."""
    generator, size = np.random.default_rng(0), 0
    for index in range(files):
        path = folder / f"class{index % CLASSES}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 64, (PIXELS, PIXELS, 3)) + 16 * (index % CLASSES)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        size += path.stat().st_size
    return size


def sample(project: Path, run_directory: Path, settings: list[str]) -> dict[str, Any]:
    """Train in a fresh process and return what it cost."""
    paths = os.pathsep.join([str(ROOT), str(project / "src")])
    quiet = ["logger=csv", "callbacks.progress_bar=null", "+trainer.enable_progress_bar=false", "precision=fp32"]
    place = f"paths.run_dir='{run_directory}'"
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(run_directory), place, *quiet, *settings],
        cwd=project,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    cost: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return cost


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = circumstances()
    cases = {f"{data}, {workers} workers": (data, workers) for data in RUNS for workers in WORKERS}
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        project = Path(
            cookiecutter(str(ROOT), no_input=True, default_config=True, output_dir=temporary, directory="template")
        )
        size = write_images(folder / "images", options.files)
        for index, names in turns(list(cases), options.rounds):
            for name in names:
                data, workers = cases[name]
                path = [] if data == "digits" else [f"data.path='{folder / 'images'}'"]
                run = folder / f"run{index}-{name.replace(', ', '-').replace(' ', '_')}"
                cost = sample(project, run, [*RUNS[data], *path, f"data.num_workers={workers}"])
                samples[name].append(
                    {
                        "waiting_share": cost["waiting_share"],
                        "step_ms": cost["step_ms"]["median"],
                        "train_seconds": cost["train_seconds"],
                        "prepare_seconds": cost["prepare_seconds"],
                    }
                )
    rows = [
        [name, *(show_spread([each[key] for each in taken]) for key in taken[0])] for name, taken in samples.items()
    ]
    headings = ["", "share waiting", "step, ms", "training, s", "setting up, s"]
    print_table(f"Waiting for data, {options.files:,} files, {options.rounds} rounds", headings, rows)
    write("data_wait", {**found, "files": options.files, "bytes": size, "samples": samples})


if __name__ == "__main__":
    main()
