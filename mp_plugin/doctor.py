"""What this machine can run: measured where it can be measured, and in plain words where not."""

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from rich.console import Group, RenderableType
from rich.table import Table

from mp_plugin.autocast import autocast
from mp_plugin.casting import DTYPES
from mp_plugin.devices import Device, Support, allow_tf32, this_machine
from mp_plugin.environment import versions
from mp_plugin.formats import FORMATS
from mp_plugin.modes import ALIASES, MODES, Mode
from mp_plugin.numerics.grad_stats import Backend, backend_of
from mp_plugin.scaling.step_plan import Route

WIDTH = 512
"""Features of the layers whose training step is timed: enough for matrix units to matter, quick on the slowest CPU."""

BATCH = 128

ROUNDS = 20

NOTABLY_SLOWER = 1.5
"""From this many times the step of fp32 on, a precision is called slower."""

GROUPS = ("fp32", "tf32", "bf16", "fp16", "bf16_true", "fp16_true")
"""The names that `precision=` takes on the command line."""


def report() -> RenderableType:
    """Return what `mp-plugin doctor` prints. Takes a few seconds: it times small training steps."""
    parts: list[RenderableType] = [_versions()]
    for device in this_machine():
        ratios = measure(device)
        parts += [_precisions(device, ratios), _remarks(device, ratios), _gradients(device)]
    return Group(*parts)


def measure(device: Device) -> dict[str, float]:
    """Time a training step of two linear layers in each precision, relative to fp32: `{"bf16": 0.5}` is twice as fast.

    Forward and backward, the quickest of alternating rounds: on a busy machine the least disturbed one.
    Precisions that the device cannot run, or for which it uses fp32, are left out.
    """
    runnable = [name for name in GROUPS if device.supports(_mode(name).compute) in (Support.native, Support.converted)]
    steps = {name: _training_step(_mode(name), device.type) for name in runnable}
    samples: dict[str, list[float]] = {name: [] for name in runnable}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            samples[name].append(_seconds(step, device.type))
    seconds = {name: min(rounds) for name, rounds in samples.items()}
    return {name: taken / seconds["fp32"] for name, taken in seconds.items()}


def remark(mode: Mode, device: Device, ratio: float | None) -> str:
    """Say in a sentence what choosing this precision on this device would do.

    Args:
        mode: the precision.
        device: where it would run.
        ratio: time of a training step relative to fp32; None if it was not measured.
    """
    support = device.supports(mode.compute)
    if support is Support.none:
        return "cannot run here"
    if support is Support.same_as_fp32:
        return "runs, and is the same as fp32 here"
    words = []
    if device.type == "cpu" and mode.compute == "fp16":
        words.append("real fp16, mostly slow on a CPU: good for finding overflows without a GPU")
    elif support is Support.converted:
        words.append("slow: no hardware for it here, so that every product converts to fp32 and back")
    elif ratio is not None and ratio >= NOTABLY_SLOWER:
        words.append(f"slower than fp32 here ({ratio:.1f} times the step, at this small size)")
    if mode.scales_loss:
        words.append("with dynamic loss scaling")
    if mode.weights != "fp32":
        words.append(f"weights in {mode.weights} too: half the memory, no fp32 master copy")
    return "; ".join(words) or "good"


def _mode(name: str) -> Mode:
    return MODES[ALIASES.get(name, name)]


def _versions() -> Table:
    table = Table(title="Versions", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in versions().items():
        table.add_row(name, value)
    return table


def _precisions(device: Device, ratios: dict[str, float]) -> Table:
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    table = Table(title=f"Precisions on {name}", title_justify="left")
    table.add_column("precision=")
    table.add_column("computes in")
    table.add_column("largest", justify="right")
    table.add_column("smallest normal", justify="right")
    table.add_column("hardware")
    table.add_column("step / fp32", justify="right")
    for group in GROUPS:
        mode = _mode(group)
        limits = FORMATS[mode.compute]
        table.add_row(
            group,
            mode.compute,
            f"{limits.max:.1e}",
            f"{limits.smallest_normal:.1e}",
            device.supports(mode.compute).value,
            f"{ratios[group]:.2f}" if group in ratios else "-",
        )
    return table


def _remarks(device: Device, ratios: dict[str, float]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    for group in GROUPS:
        table.add_row(f" {group}", remark(_mode(group), device, ratios.get(group)))
    return table


def _gradients(device: Device) -> Table:
    table = Table(title="Gradients between backward pass and step", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("read by", reader(device.type))
    table.add_row("fused=True", f"{Route.folded.value} route: the optimizer unscales and clips")
    table.add_row("other optimizers", f"{Route.one_pass.value} route with clipping by norm, else separate")
    table.add_row("hooks that look", f"{Route.separate.value} route: unscaled, hooks, clipped")
    return table


def reader(device_type: str) -> str:
    """Say who reads the gradients of a step on this type of device."""
    if backend_of(torch.device(device_type)) is Backend.triton:
        return "a Triton kernel: one launch for all of a dtype, and a small one to add up"
    if device_type == "cuda":
        return "PyTorch, as Triton does not work here: the same numbers, in two reads"
    return "PyTorch: one read"


def _training_step(mode: Mode, device_type: str) -> Callable[[], None]:
    weights = DTYPES[mode.weights]
    layers = [torch.ones(WIDTH, WIDTH, device=device_type, dtype=weights, requires_grad=True) for _ in range(2)]
    inputs = torch.ones(BATCH, WIDTH, device=device_type, dtype=weights)

    def step() -> None:
        context = autocast(device_type, DTYPES[mode.compute]) if mode.is_mixed else nullcontext()
        undo = allow_tf32() if mode.compute == "tf32" else None
        with context:
            hidden = torch.nn.functional.gelu(torch.nn.functional.linear(inputs, layers[0]))
            loss = torch.nn.functional.linear(hidden, layers[1]).float().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        if undo is not None:
            undo()

    return step


def _seconds(step: Callable[[], None], device_type: str) -> float:
    _wait(device_type)
    start = time.perf_counter()
    step()
    _wait(device_type)
    return time.perf_counter() - start


def _wait(device_type: str) -> None:
    if device_type != "cpu":
        torch.accelerator.synchronize()
