"""What the predictions of two runs on the same test samples tell: how well calibrated, how much alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mp_plugin.errors import TelemetryError

COLUMNS = ("index", "label", "prediction", "confidence")
NUM_BINS = 15
"""Of confidence, equally wide: what torchmetrics takes by default, and the papers before it."""
ROUNDING = 1e-3
"""By which a confidence of 16 bits may exceed 1."""

Values: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """A run's predictions on the test split, by the position of the sample in it."""

    index: Values
    """Rising."""
    prediction: Values | None = None
    """One number for each sample; None where each has a list."""
    tokens: Values | None = None
    """Of all samples in a row, where each has a list of predictions."""
    lengths: Values | None = None
    """Of these lists."""
    label: Values | None = None
    confidence: Values | None = None


def read_predictions(path: Path) -> Predictions:
    """Read `test_predictions.parquet`.

    Raises:
        TelemetryError: for a file that cannot be read, or is not of that kind.
    """
    try:
        file = pq.ParquetFile(path)
        table = file.read([name for name in COLUMNS if name in file.schema_arrow.names])
    except (OSError, pa.ArrowException) as error:
        raise TelemetryError(f"{path} cannot be read ({error}).") from error
    if "index" not in table.column_names or not pa.types.is_integer(table.schema.field("index").type):
        raise TelemetryError(f"{path} has no column index of whole numbers; accepted: the position in the test split.")
    if any(column.null_count for column in table.columns):
        raise TelemetryError(f"{path} has empty cells; accepted: a value in each.")
    order = np.argsort(table["index"].to_numpy(), kind="stable")
    table = table.take(order)
    index = table["index"].to_numpy()
    if len(np.unique(index)) < len(index):
        raise TelemetryError(f"{path} has an index twice; accepted: each test sample once.")
    columns: dict[str, Values] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if not _is_list(column.type):
            columns[name] = column.to_numpy(zero_copy_only=False)
        elif name == "prediction":
            columns["tokens"] = column.flatten().to_numpy(zero_copy_only=False)
            columns["lengths"] = column.value_lengths().to_numpy(zero_copy_only=False)
    return Predictions(**columns)


def calibration_error(predictions: Predictions) -> float | None:
    """Return the expected calibration error of the likeliest class: the mean gap between confidence and accuracy.

    Samples are sorted into 15 bins by confidence; of each bin the gap between the mean confidence and the share that is
    right, weighted by the bin's samples (Guo et al., 2017). Computed by torchmetrics: the multi-class error is by
    definition the binary one of "is the likeliest class right", with its confidence.

    Returns:
        None where labels, predictions or confidences are missing.

    Raises:
        TelemetryError: for confidences that are no probabilities.
    """
    label, prediction, confidence = predictions.label, predictions.prediction, predictions.confidence
    if label is None or prediction is None or confidence is None or not len(label):
        return None
    confidence = confidence.astype(np.float64)
    if not bool(np.all((confidence >= 0) & (confidence <= 1 + ROUNDING))):
        raise TelemetryError("Confidences are outside 0 to 1, or NaN; accepted: the probability of the prediction.")
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    sure = torch.from_numpy(np.minimum(confidence, 1.0))
    return float(binary_calibration_error(sure, torch.from_numpy(label == prediction).long(), n_bins=NUM_BINS))


def agreement(candidate: Predictions, reference: Predictions) -> tuple[str, float]:
    """Return how much alike two runs predict on the same samples.

    Returns:
        `same` and the share of equal predictions, of tokens where each sample has a list; or `apart` and the mean
        absolute difference, of predictions that are not whole numbers.

    Raises:
        TelemetryError: if the two have no predictions of the same samples.
    """
    if not np.array_equal(candidate.index, reference.index):
        raise TelemetryError("The predictions are of different test samples.")
    for one, other in ((candidate.label, reference.label), (candidate.lengths, reference.lengths)):
        if one is not None and other is not None and not np.array_equal(one, other):
            raise TelemetryError("The predictions are of test samples with different labels or lengths.")
    pairs = ((candidate.prediction, reference.prediction), (candidate.tokens, reference.tokens))
    for one, other in pairs:
        if one is not None and other is not None and len(one) == len(other) > 0:
            if one.dtype.kind == other.dtype.kind == "f":
                return "apart", float(np.abs(one.astype(np.float64) - other.astype(np.float64)).mean())
            return "same", float(np.mean(one == other))
    raise TelemetryError("There are no predictions of both runs to be compared.")


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
