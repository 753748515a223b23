"""The house rules of the package, read off its imports."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mp_plugin"
MAX_LINES = 300

# Folders and files of the package from the ground up; a new one is placed here, on purpose, before the tests pass.
FLOORS = (
    {"_version", "errors", "checks", "formats", "config", "modes", "instance"}
    | {"devices", "autocast", "buffers", "casting", "optimizers", "parameter_names", "random_state", "batch"}
    | {"object_state", "whole_file", "fully_sharded", "environment"}
    | {"step_times", "peak_memory", "energy", "batch_size", "cost"},
    {"numerics"},
    {"scaling", "fallback", "telemetry", "copy_on_write"},
    {"precision", "fsdp", "schedulers", "callbacks", "checkpoint", "retry", "step", "strategies", "hooks", "alerts"}
    | {
        "step_start",
        "step_planner",
        "rehearsal",
        "finding",
        "live_trace",
        "explain",
        "evidence",
        "module_state",
        "report_incident",
        "run_view",
        "proof",
        "proof_scale",
        "all_ranks",
        "layer_fallback",
        "chosen_layers",
        "format_report",
        "take_census",
        "run_directory",
        "scale_sampling",
        "layer_sampling",
        "held_parameters",
        "run_connections",
        "run_recording",
        "drift",
        "in_fp32",
        "layer_metrics",
        "cost_meter",
    },
    {"report", "compare", "cli", "doctor"},
)
LIGHTNING_FLOOR = 3
# Beside the house: Hydra imports these at the start of every app, so they import nothing of the floors.
HYDRA_FILES = {"hydra_search_path", "hydra_guard", "_hydra_shim"}
TRITON_FILE = "mp_plugin.numerics.triton_grad_stats"


@dataclass(frozen=True)
class Import:
    importer: str
    target: str
    at_import_time: bool
    """Neither inside a function nor under TYPE_CHECKING."""


def imports(package: Path) -> Iterator[Import]:
    for path in sorted(package.rglob("*.py")):
        importer = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        yield from _imports_below(ast.parse(path.read_text()), importer, at_import_time=True)


def _imports_below(node: ast.AST, importer: str, at_import_time: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(importer, alias.name, at_import_time) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield Import(importer, "." * child.level + (child.module or ""), at_import_time)
        else:
            deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
                isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            )
            yield from _imports_below(child, importer, at_import_time and not deferred)


def room(module: str) -> str:
    """The folder or file directly below the package that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def floor(module: str) -> int | None:
    return next((number for number, rooms in enumerate(FLOORS) if room(module) in rooms), None)


def complaints(package: Path) -> list[str]:
    return [*_size(package), *_placement(package), *_imports(package), *_cycles(package)]


def _size(package: Path) -> Iterator[str]:
    for path in sorted(package.rglob("*.py")):
        lines = len(path.read_text().splitlines())
        if lines > MAX_LINES:
            yield f"{path.relative_to(package.parent)} has {lines} lines; split it along an idea"


def _placement(package: Path) -> Iterator[str]:
    rooms = {path.stem for path in package.glob("*.py")} | {path.parent.name for path in package.glob("*/*.py")}
    for name in sorted(rooms - {"__init__", package.name} - HYDRA_FILES - set().union(*FLOORS)):
        yield f"{name} has no floor; place it in FLOORS"


def _imports(package: Path) -> Iterator[str]:
    for found in imports(package):
        importer, target = found.importer, found.target
        top = target.partition(".")[0]
        beside = room(importer) in HYDRA_FILES
        if target.startswith("."):
            yield f"{importer} imports {target}; write the full name"
        elif target == package.name:
            yield f"{importer} imports from the package root; import from the submodule"
        elif top == package.name and importer != package.name:  # the root may re-export anything
            if beside or room(target) in HYDRA_FILES:
                if not (beside and room(target) in HYDRA_FILES):
                    yield f"{importer} imports {target} across the wall around Hydra"
            elif (floor(target) or 0) > (floor(importer) or 0):
                yield f"{importer} imports {target} from a higher floor"
        elif top in ("lightning", "pytorch_lightning") and floor(importer) != LIGHTNING_FLOOR:
            yield f"{importer} imports {top}; only the floor of precision.py may"
        elif top == "triton" and importer != TRITON_FILE:
            yield f"{importer} imports triton; only {TRITON_FILE} may"
        elif top in ("hydra", "omegaconf") and not beside:
            yield f"{importer} imports {top}; only {', '.join(sorted(HYDRA_FILES))} may"
        elif top == "torch" and beside:
            yield f"{importer} imports torch, which every Hydra app would then wait for"


def _cycles(package: Path) -> Iterator[str]:
    graph: dict[str, set[str]] = {}
    for found in imports(package):
        if found.at_import_time and found.importer != package.name:
            graph.setdefault(found.importer, set()).add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "imports in a circle: " + " -> ".join(error.args[1])


def test_the_package_keeps_the_house_rules():
    assert complaints(PACKAGE) == []


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"scaling/long.py": "x = 1\n" * 301}, "mp_plugin/scaling/long.py has 301 lines"),
        ({"newcomer.py": ""}, "newcomer has no floor"),
        ({"new_room/thing.py": ""}, "new_room has no floor"),
        ({"config.py": "from mp_plugin.precision import X"}, "mp_plugin.config imports mp_plugin.precision from a hi"),
        ({"numerics/a.py": "def f():\n    from mp_plugin.scaling.b import X"}, "from a higher floor"),
        ({"scaling/a.py": "if TYPE_CHECKING:\n    from mp_plugin.precision import X"}, "from a higher floor"),
        ({"precision.py": "from mp_plugin import X"}, "mp_plugin.precision imports from the package root"),
        ({"precision.py": "import mp_plugin"}, "mp_plugin.precision imports from the package root"),
        ({"precision.py": "from .config import X"}, "mp_plugin.precision imports .config; write the full name"),
        ({"cli.py": "def f():\n    import lightning.pytorch"}, "mp_plugin.cli imports lightning; only"),
        ({"scaling/a.py": "from pytorch_lightning import X"}, "mp_plugin.scaling.a imports pytorch_lightning; only"),
        ({"numerics/grad_stats.py": "import triton"}, "mp_plugin.numerics.grad_stats imports triton; only"),
        ({"config.py": "from omegaconf import X"}, "mp_plugin.config imports omegaconf; only"),
        ({"hydra_guard.py": "import torch"}, "mp_plugin.hydra_guard imports torch, which"),
        ({"hydra_guard.py": "from mp_plugin.errors import X"}, "mp_plugin.errors across the wall around Hydra"),
        ({"cli.py": "from mp_plugin.hydra_guard import X"}, "mp_plugin.hydra_guard across the wall around Hydra"),
        (
            {"config.py": "from mp_plugin.formats import X", "formats.py": "import mp_plugin.config"},
            "imports in a circle: mp_plugin.",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_notices_when_it_is_broken(tmp_path, files, complaint):
    for name, text in files.items():
        path = tmp_path / "mp_plugin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (found,) = complaints(tmp_path / "mp_plugin")
    assert complaint in found


def test_what_the_rules_allow(tmp_path):
    allowed = {
        "__init__.py": "from mp_plugin.precision import X",
        "precision.py": "import lightning.pytorch\nfrom mp_plugin.callbacks import X",
        "callbacks.py": "if TYPE_CHECKING:\n    from mp_plugin.precision import X",
        "numerics/triton_grad_stats.py": "import triton",
        "hydra_search_path.py": "import hydra\nfrom mp_plugin.hydra_guard import X",
        "hydra_guard.py": "import omegaconf",
    }
    for name, text in allowed.items():
        path = tmp_path / "mp_plugin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert complaints(tmp_path / "mp_plugin") == []
