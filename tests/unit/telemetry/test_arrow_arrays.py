import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from mp_plugin.telemetry.arrow_arrays import arrow_array

LARGE = 2**62


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([], pa.int64()),
        ([1, -LARGE, LARGE], pa.int64()),
        ([-149, None, 128], pa.int16()),
        ([None] * 9 + [3] * 9, pa.int16()),
        ([0.1, -0.0, 1e308, float("inf"), None], pa.float64()),
        ([], pa.string()),
        (["", "net.0", "äöü 🙂", "a\nb", None, "x" * 300], pa.string()),
        ([], pa.list_(pa.int64())),
        ([[1, 2], None, [], [LARGE]], pa.list_(pa.int64())),
        ([None, None], pa.list_(pa.int64())),
    ],
)
def test_it_is_what_pyarrow_makes_of_it(values, kind):
    made = arrow_array(values, kind)
    made.validate(full=True)
    assert made.equals(pa.array(values, kind))
    assert made.null_count == values.count(None)


def test_what_does_not_fit_is_refused():
    with pytest.raises(OverflowError):
        arrow_array([2**63], pa.int64())
    with pytest.raises(UnicodeEncodeError):
        arrow_array(["\udc80"], pa.string())
    assert np.dtype("int16") == pa.int16().to_pandas_dtype()


def test_a_first_sample_does_not_import_pandas(tmp_path):
    program = f"""
import sys
from tests.helpers.recorded_runs import record_run
assert "pandas" not in sys.modules
record_run({str(tmp_path)!r}, num_layers=2, num_samples=1)
print("pandas" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
