"""Training needs torch and Lightning alone: without the rest, diagnoses step aside with a warning and it goes on."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

TRAIN = """
import sys
import lightning.pytorch  # first: with some of these installed, it counts on them

for name in [*sys.modules, "hydra", "jinja2", "omegaconf", "pandas", "plotly", "pyarrow", "rich", "typer"]:
    if name.partition(".")[0] in ("hydra", "jinja2", "omegaconf", "pandas", "plotly", "pyarrow", "rich", "typer"):
        sys.modules[name] = None  # an import of it fails

from mp_plugin import AdaptivePrecision, Telemetry
from tests.helpers.training import fit, infinite_at, Regression

telemetry = Telemetry(directory=sys.argv[1], activations=True, histograms=True, census=True, every_n_steps=1)
plugin = AdaptivePrecision("bf16", telemetry=telemetry)
fit(plugin, Regression(fault=infinite_at(3, 5)))
print(plugin.effective_step, [incident.cause.value for incident in plugin.incidents])
"""


def test_a_training_goes_on_without_what_only_shows_and_stores(tmp_path):
    command = [sys.executable, "-c", TRAIN, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "6 ['forward', 'forward']"
    told = [
        "Incidents cannot be shown here",
        "The summary of the run cannot be shown here",
        "telemetry/stats cannot be",
    ]
    assert [done.stderr.count(each) for each in told] == [1, 1, 1]
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"incidents.jsonl", "run.json", "census.json", "precision_map.yaml"} <= written
