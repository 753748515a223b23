"""The built package, in an environment of its own, under an app that we did not write."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APP = Path(__file__).parent / "foreign_app"
SOURCES = ("mp_plugin", "conf", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
HYDRA_PRE_RELEASE = "1.4.0rc3"
COMPUTE_DTYPE = {
    "bf16": "torch.bfloat16",
    "bf16_true": "torch.bfloat16",
    "fp16": "torch.float16",
    "fp16_true": "torch.float16",
    "fp32": "torch.float32",
    "tf32": "torch.float32",
}

# One environment for the file: it holds torch, and takes a minute to install.
pytestmark = pytest.mark.xdist_group("wheel")


def run(*command, cwd=None):
    """Run a command that sees nothing of this process's Python settings."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)


def run_checked(*command, cwd=None):
    result = run(*command, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what the package is built from, so that a build leaves nothing in the checkout."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    """The wheel, built from the source distribution as an index would serve it."""
    out = tmp_path_factory.mktemp("dist")
    run_checked(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a fresh environment with nothing in it."""
    venv = tmp_path_factory.mktemp("environment")
    run_checked(sys.executable, "-m", "venv", venv)
    yield venv / "bin" / "python"
    shutil.rmtree(venv)  # pytest would keep the last three, a gigabyte each


@pytest.fixture(
    scope="module",
    params=["wheel, Hydra 1.3", "wheel, Hydra 1.4", "editable, Hydra 1.4", "editable, Hydra 1.3"],
)
def environment(request, python, wheel, tree):
    """The interpreter with the package and the Hydra line installed; each step changes one of the two."""
    package, hydra = request.param.split(", ")
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    constrained = (*install, "-c", ROOT / "constraints.txt")
    if request.param == "wheel, Hydra 1.3":
        run_checked(*constrained, wheel)
    elif request.param == "wheel, Hydra 1.4":
        # The constraints pin Hydra 1.3.
        run_checked(*install, f"hydra-core=={HYDRA_PRE_RELEASE}")
    elif request.param == "editable, Hydra 1.4":
        run_checked(*constrained, "setuptools", "hatchling", "editables")
        run_checked(*install, "--no-deps", "--no-build-isolation", "--editable", tree)
    else:
        run_checked(*constrained, "hydra-core")
    version = run_checked(python, "-c", "import hydra; print(hydra.__version__)").stdout
    assert version.startswith(hydra.removeprefix("Hydra "))
    return package, python


def test_wheel_holds_the_package_and_nothing_else(wheel, tree):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {Path(name).name: name for name in archive.namelist() if ".dist-info/" in name}
        entry_points = archive.read(metadata["entry_points.txt"]).decode()
    package = {str(path.relative_to(tree)) for path in (tree / "mp_plugin").rglob("*") if path.is_file()}
    conf = {f"mp_plugin/{path.relative_to(tree)}" for path in (tree / "conf").rglob("*") if path.is_file()}
    shim = {"hydra_plugins/mp_plugin_search_path.py"}
    assert names == (package - {"mp_plugin/_hydra_shim.py"}) | conf | shim
    # Against the sets above being empty, or short of what matters.
    assert names >= {
        "mp_plugin/py.typed",
        "mp_plugin/conf/__init__.py",
        "mp_plugin/conf/precision/bf16.yaml",
        "mp_plugin/conf/precision/scaling/dynamic.yaml",
        "mp_plugin/conf/precision/telemetry/light.yaml",
        "mp_plugin/conf/schemas/precision.json",
    }
    assert "mp-plugin = mp_plugin.cli:main" in entry_points
    assert "LICENSE" in metadata


def test_search_path_shows_our_groups_last(environment, tree, tmp_path):
    package, python = environment
    shown = run_checked(python, APP / "show.py", "--info", "searchpath", cwd=tmp_path).stdout
    rows = [line.replace(" ", "").split("|")[1:3] for line in shown.splitlines() if line.startswith("| ")]
    expected = {"wheel": "pkg://mp_plugin.conf", "editable": f"file://{tree}/conf"}[package]
    providers = [provider for provider, _ in rows]
    assert ["mp_plugin", expected] in rows
    assert providers.index("main") < providers.index("mp_plugin")


def test_precision_drives_the_app(environment, tmp_path):
    _, python = environment
    result = run_checked(python, APP / "app.py", "+precision=bf16", cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "AdaptivePrecision torch.bfloat16 TorchCheckpointIO"


def test_every_precision_in_one_sweep(environment, tmp_path):
    _, python = environment
    result = run_checked(python, APP / "app.py", "-m", "+precision=glob(*)", cwd=tmp_path)
    seen = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("AdaptivePrecision ")]
    assert seen == [COMPUTE_DTYPE[option] for option in sorted(COMPUTE_DTYPE)]


def test_the_apps_own_file_wins(environment, tmp_path):
    _, python = environment
    shutil.copytree(APP, tmp_path / "app")
    own = tmp_path / "app" / "conf" / "precision" / "bf16.yaml"
    own.parent.mkdir()
    own.write_text("# @package _global_\nprecision: the app's own\n")
    show = (python, tmp_path / "app" / "show.py")
    assert json.loads(run_checked(*show, "+precision=bf16", cwd=tmp_path).stdout)["precision"] == "the app's own"
    ours = json.loads(run_checked(*show, "+precision=fp32", cwd=tmp_path).stdout)["precision"]
    targets = {name: ours.pop(name)["_target_"] for name in ("telemetry", "fallback")}
    assert targets == {"telemetry": "mp_plugin.Telemetry", "fallback": "mp_plugin.Fallback"}
    assert ours == {"_target_": "mp_plugin.AdaptivePrecision", "precision": "32-true", "device": None, "exact": None}


def test_the_apps_own_plugins_are_not_lost(environment, tmp_path):
    _, python = environment
    result = run(python, APP / "show.py", "-m", "+precision=fp32,bf16", "trainer=cluster", cwd=tmp_path)
    assert result.returncode == 1
    assert "Stopped before training: precision=fp32 would drop" in result.stderr
