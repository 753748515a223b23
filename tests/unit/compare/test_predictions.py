"""Calibration and agreement, against torchmetrics' own multi-class metric and by hand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from mp_plugin.compare.predictions import agreement, calibration_error, read_predictions
from mp_plugin.errors import TelemetryError


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return read_predictions(path)


def test_the_calibration_error_is_that_of_the_likeliest_class(tmp_path):
    random = np.random.default_rng(0)
    logits = random.normal(size=(500, 7)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label = random.integers(0, 7, 500)
    found = calibration_error(
        write(
            tmp_path / "p",
            index=np.arange(500),
            label=label,
            prediction=probabilities.argmax(1),
            confidence=probabilities.max(1),
        )
    )
    expected = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(label), 7, n_bins=15)
    assert found == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("confidence", [[0.5, 7.0], [0.5, -0.1], [0.5, float("nan")]])
def test_what_is_no_probability_is_refused(tmp_path, confidence):
    found = write(tmp_path / "p", index=[0, 1], label=[0, 1], prediction=[0, 1], confidence=confidence)
    with pytest.raises(TelemetryError, match="outside 0 to 1"):
        calibration_error(found)


def test_samples_are_paired_by_index(tmp_path):
    ours = write(tmp_path / "a", index=[2, 0, 1], prediction=[7, 5, 6])
    theirs = write(tmp_path / "b", index=[0, 1, 2], prediction=[5, 6, 8])
    assert agreement(ours, theirs) == ("same", pytest.approx(2 / 3))


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.list_(pa.int64(), 2), pa.large_list(pa.int32())])
def test_tokens_are_compared_one_by_one(tmp_path, kind):
    ours = write(tmp_path / "a", index=[1, 0], prediction=pa.array([[3, 4], [1, 2]], kind))
    theirs = write(tmp_path / "b", index=[0, 1], prediction=pa.array([[1, 2], [3, 9]], kind))
    assert agreement(ours, theirs) == ("same", 0.75)


def test_numbers_are_told_by_their_distance(tmp_path):
    ours = write(tmp_path / "a", index=[0, 1], prediction=[1.0, 2.0])
    theirs = write(tmp_path / "b", index=[0, 1], prediction=[1.5, 2.0])
    assert agreement(ours, theirs) == ("apart", 0.25)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"index": [0, 2], "prediction": [1, 2]}, "of different test samples"),
        ({"index": [0, 1], "prediction": [1, 2], "label": [1, 0]}, "different labels"),
        ({"index": [0, 1], "confidence": [0.5, 0.5]}, "no predictions of both"),
    ],
)
def test_other_samples_are_no_agreement(tmp_path, other, message):
    ours = write(tmp_path / "a", index=[0, 1], prediction=[1, 2], label=[0, 0])
    with pytest.raises(TelemetryError, match=message):
        agreement(ours, write(tmp_path / "b", **other))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"index": [0, 0]}, "an index twice"),
        ({"label": [0, 0]}, "no column index"),
        ({"index": [0, None]}, "empty cells"),
    ],
)
def test_damaged_files_are_refused(tmp_path, columns, message):
    with pytest.raises(TelemetryError, match=message):
        write(tmp_path / "p", **columns)
