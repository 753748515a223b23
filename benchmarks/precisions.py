"""What does a lower precision bring? Time, memory, throughput and energy of a step, beside FP32 and beside TF32.

GPT-2, ResNet-50 and ViT-B/16, each in two sizes, trained with AdamW by Lightning under `AdaptivePrecision` in each
precision, one training after the other, each alone: on a CPU each has a process of its own. Nobody waits for the
verdict (`exact=False`), and nothing is sampled. FP32 is without TF32 here,
in convolutions too, where torch would use it. A sample is the time of a few steps, until the device is done with them.
The peak of memory counts everything that the training holds: weights, optimizer, activations and gradients; on a GPU
as torch allocates it, on a CPU as the process grows from before the training. Energy is what the GPU's driver counts
(NVML), of the whole board, for at least a second.

The familiar claim is 3 times the speed at half the memory: the last column says whether that holds, beside FP32.

    python benchmarks/precisions.py [--device cuda] [--only GPT] [--quick]
"""

import gc
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from helpers.devices import allocated_bytes, check_device, forget_peak, parser_of, peak_bytes
from helpers.energy import energy_meter
from helpers.harness import circumstances, write
from helpers.models import MODELS
from helpers.paced_fit import PacedFit, be_quiet
from helpers.tables import precisions_table

from mp_plugin import AdaptivePrecision, LossScaling, Telemetry
from mp_plugin.devices import without_tf32

PRECISIONS = {"cpu": ("fp32", "bf16", "fp16", "bf16-true"), "cuda": ("fp32", "tf32", "bf16", "fp16", "bf16-true")}
SIZES = {"cpu": (("small", 1), ("small", 8)), "cuda": (("full", 1), ("small", 1))}
"""Of a model, and how many times its batch."""
SCALE = 2.0**8
"""Of every fp16 training: none of these gradients overflows at it."""
WARM_UP, MOST_SAMPLES = 3, 10
SECONDS, SECONDS_OF_A_SAMPLE, SECONDS_OF_ENERGY = 3.0, 0.1, 1.0


def measure(model: str, size: str, times: int, precision: str, device: str, *, is_quick: bool) -> dict[str, Any]:
    """Train for a while, with so many times the batch, and return what it took."""
    be_quiet()
    chosen = MODELS[model][size]
    chosen = replace(chosen, batch_size=times * chosen.batch_size)
    scaling = LossScaling(init_scale=SCALE) if precision == "fp16" else None
    plugin = AdaptivePrecision(precision, scaling=scaling, telemetry=Telemetry(every_n_steps=0), exact=False)
    gc.collect()
    held = _resident_bytes("VmRSS") if device == "cpu" else allocated_bytes(device) or 0
    # torch lets convolutions use TF32 unless it is told otherwise.
    with TemporaryDirectory() as folder, without_tf32() if precision == "fp32" else nullcontext():
        options = {"default_root_dir": folder}
        fit = PacedFit(chosen, plugin, device=device, optimizer={"fused": True}, trainer=options)
        if fit.run(1) < SECONDS / WARM_UP and not is_quick:
            fit.run(WARM_UP)
        forget_peak(device)  # cuDNN tries what takes most, and settles for less
        step_seconds = fit.run(1)
        steps = max(1, int(SECONDS_OF_A_SAMPLE / step_seconds))
        num_samples = min(MOST_SAMPLES, max(1, int(SECONDS / (steps * step_seconds))))
        samples = [fit.run(steps) / steps for _ in range(2 if is_quick else num_samples)]
        peak = _resident_bytes("VmHWM") if device == "cpu" else peak_bytes(device) or 0
        items, unit = chosen.items
        joules = _joules(fit, device, statistics.median(samples))
        fit.finish()
    return {
        "model": model,
        "size": size,
        "precision": precision,
        "batch_size": chosen.batch_size,
        "shapes": chosen.shapes,
        "parameters": sum(parameter.numel() for parameter in fit.training.parameters()),
        "seconds": samples,
        "items": items,
        "unit": unit,
        "peak_bytes": peak - held,
        "joules_per_item": None if joules is None else joules / items,
        "skipped_steps": plugin.skipped_steps,
    }


def _joules(fit: PacedFit, device: str, step_seconds: float) -> float | None:
    """Return the energy of a step; None where nobody counts."""
    read = energy_meter(device)
    if read is None:
        return None
    steps = max(1, int(SECONDS_OF_ENERGY / step_seconds))
    before = read()
    fit.run(steps)
    return (read() - before) / steps


def _resident_bytes(field: str) -> int:
    """Return `VmRSS`, what this process holds, or `VmHWM`, the most that it ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def run(*arguments: Any, is_quick: bool) -> dict[str, Any]:
    """Measure here on a GPU, and on a CPU in a fresh process, whose memory nothing else has grown."""
    if arguments[-1] == "cuda":
        return measure(*arguments, is_quick=is_quick)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments, is_quick=is_quick).result()


def main() -> None:
    """Measure, print and write down."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", choices=MODELS, help="one model; writes no result")
    chosen = parser.parse_args()
    check_device(chosen.device)
    found = circumstances(chosen.device)
    start = time.perf_counter()
    rows = [
        run(model, size, times, precision, chosen.device, is_quick=chosen.quick)
        for model in ([chosen.only] if chosen.only else MODELS)
        for size, times in ((("tiny", 1),) if chosen.quick else SIZES[chosen.device])
        for precision in PRECISIONS[chosen.device]
    ]
    result = {**found, "minutes": (time.perf_counter() - start) / 60, "rows": rows}
    print(precisions_table(result))
    if not chosen.quick and not chosen.only:
        write("precisions", result, chosen.device)


if __name__ == "__main__":
    main()
