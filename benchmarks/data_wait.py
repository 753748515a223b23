"""The share of training time that a generated project spends waiting for data.

Generates a project, and a folder of small PNG files, both in a temporary folder. Then trains with its `train.py`, in
which `CostMeter` measures: the digits, which are in memory, with the perceptron, and the image folder with the
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

CHECK = """
import sys, time
from my_project.data.image_folder import ImageFolderDataModule
started = time.perf_counter()
ImageFolderDataModule(sys.argv[1]).setup()
print(time.perf_counter() - started)
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


def python(project: Path, *arguments: str) -> str:
    """Run Python in the project, in a fresh process, and return what it printed."""
    paths = os.pathsep.join([str(ROOT), str(project / "src")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def sample(project: Path, run_directory: Path, settings: list[str]) -> dict[str, Any]:
    """Train, and return what it cost."""
    quiet = ["logger=csv", "callbacks.progress_bar=null", "+trainer.enable_progress_bar=false", "precision=fp32"]
    python(project, "train.py", f"hydra.run.dir='{run_directory}'", *quiet, *settings)
    cost = json.loads((run_directory / "telemetry" / "cost.json").read_text())
    return {
        "waiting_share": cost["waiting_share"],
        "step_ms": cost["step_ms"]["median"],
        "train_seconds": cost["train_seconds"],
    }


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = circumstances()
    cases = {f"{data}, {workers} workers": (data, workers) for data in RUNS for workers in WORKERS}
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    check_seconds: list[float] = []
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
                samples[name].append(sample(project, run, [*RUNS[data], *path, f"data.num_workers={workers}"]))
            check_seconds.append(float(python(project, "-c", CHECK, str(folder / "images"))))
    rows = [
        [name, *(show_spread([each[key] for each in taken]) for key in taken[0])] for name, taken in samples.items()
    ]
    headings = ["", "share waiting", "step, ms", "training, s"]
    print_table(f"Waiting for data, {options.files:,} files, {options.rounds} rounds", headings, rows)
    print(f"Reading and splitting all files before training: {show_spread(check_seconds)} s")
    write(
        "data_wait",
        {**found, "files": options.files, "bytes": size, "check_seconds": check_seconds, "samples": samples},
    )


if __name__ == "__main__":
    main()
