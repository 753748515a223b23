import csv
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from mp_plugin.config import LayerMetrics
from mp_plugin.layer_metrics import MAX_BARS, MAX_TRACKED, TrackedLayers, extreme_layers
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.tensor_stats import TensorStats
from tests.helpers.training import quiet_trainer

ACTIVATION, BACK, PARAMETER = TensorKind
COUNTED = {-3: 2, -1: 5, 4: 1}
ODD_NAMES = ["a/b", "a b", "a_b", "", "äöü", "new\nline", "\udc80", "<img src=x>", "{}%s", "-", "x" * 300]


def sample(
    layer: str,
    *,
    amax: float = 1.0,
    flushed: int = 0,
    kind: TensorKind = ACTIVATION,
    dtype: str = "fp16",
    compute_dtype: str = "fp16",
    exponents: dict[int, int] | None = None,
) -> LayerSample:
    """Of eight values that are not zero, a zero and a NaN."""
    stats = TensorStats(
        numel=10, zeros=1, nans=1, amax=amax, flushed=flushed, subnormal=1 if flushed else 0, exponents=exponents or {}
    )
    return LayerSample(
        step=0, layer=layer, kind=kind, dtype=dtype, compute_dtype=compute_dtype, loss_scale=1.0, stats=stats
    )


def trainer_with(*loggers: Any) -> pl.Trainer:
    return quiet_trainer(logger=list(loggers))


def csv_rows(logger: CSVLogger) -> list[dict[str, str]]:
    logger.save()
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def wandb_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbLogger]:
    """A real one, which writes to disk what it would send."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield WandbLogger(save_dir=tmp_path, project="layers")
    wandb.teardown()


def wandb_rows(logger: WandbLogger, directory: Path) -> list[dict[str, Any]]:
    """What an offline run has written to be sent, a row for each call of `log`."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    logger.experiment.finish()
    wandb.teardown()  # which waits until everything is on disk
    (file,) = directory.rglob("*.wandb")
    rows = []
    for data in leveldb_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                name, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                row[name] = {**row.get(name, {}), inner[0]: value} if inner else value
            rows.append(row)
    return rows


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a log of LevelDB, whose format W&B's files have after seven bytes of their own."""
    header, block, place, parts = 7, 2**15, 7, b""
    while place + header <= len(data):
        left = block - place % block
        if left < header:
            place += left
            continue
        _, length, part = struct.unpack_from("<IHB", data, place)
        parts += data[place + header : place + header + length]
        place += header + length
        if part in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def tensorboard_events(logger: TensorBoardLogger) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger.save()
    logger.experiment.flush()
    return accumulator.EventAccumulator(logger.log_dir, size_guidance={"histograms": 0}).Reload()


def test_numbers_of_a_sample_in_a_csv_file(tmp_path):
    logger = CSVLogger(tmp_path)
    tracked, trainer = TrackedLayers(LayerMetrics.all), trainer_with(logger)
    tracked.log(trainer, [sample("net.0", amax=65504 / 4, flushed=3), sample("net.0", kind=BACK, amax=0.0)], step=7)
    tracked.log(trainer, [sample("net.0")], step=9)
    first, second = csv_rows(logger)
    assert {name: float(value) for name, value in first.items()} == {
        "step": 7,
        "precision/layer/net.0/activation/headroom_bits": 2.0,
        "precision/layer/net.0/activation/amax": 65504 / 4,
        "precision/layer/net.0/activation/underflow": 4 / 8,
        "precision/layer/net.0/activation/saturated": 0.0,
        "precision/layer/net.0/activation_gradient/amax": 0.0,
        "precision/layer/net.0/activation_gradient/underflow": 0.0,
        "precision/layer/net.0/activation_gradient/saturated": 0.0,
    }
    assert second["step"] == "9"


def test_histograms_in_tensorboard(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    tracked = TrackedLayers(LayerMetrics.extremes)
    tracked.log(trainer_with(logger), [sample("head", exponents=COUNTED), sample("stem", kind=PARAMETER)], step=3)
    events = tensorboard_events(logger)
    assert events.Scalars("precision/layer/head/activation/amax")[0].value == 1.0
    assert events.Tags()["histograms"] == ["precision/layer/head/activation/log2_magnitude"]
    (event,) = events.Histograms("precision/layer/head/activation/log2_magnitude")
    assert event.step == 3
    histogram = event.histogram_value
    assert (histogram.min, histogram.max, histogram.num) == (-4, 4, 8)
    # A value counts for the exponent at the upper edge of its bin.
    assert dict(zip(histogram.bucket_limit, histogram.bucket, strict=True)) == {
        exponent: COUNTED.get(exponent, 0) for exponent in range(-3, 5)
    }


def test_histograms_and_a_chart_in_wandb(wandb_logger, tmp_path):
    tracked = TrackedLayers(LayerMetrics.extremes)
    many = [sample(f"net.{place}", amax=2.0**-place, exponents=COUNTED) for place in range(MAX_BARS + 5)]
    tracked.log(trainer_with(CSVLogger(tmp_path), wandb_logger), many, step=5)
    rows = wandb_rows(wandb_logger, tmp_path)
    assert [row["trainer/global_step"] for row in rows] == [5, 5]
    scalars, pictures = rows
    assert scalars["precision/layer/net.0/activation/amax"] == 1.0
    histogram = pictures["precision/layer/net.0/activation/log2_magnitude"]
    assert histogram["_type"] == "histogram"
    assert histogram["bins"] == [*range(-4, 5)]
    assert histogram["values"] == [COUNTED.get(exponent, 0) for exponent in range(-3, 5)]
    # Those of the layers with curves, and one chart of many more.
    assert len([name for name in pictures if name.endswith("log2_magnitude")]) == 3
    (table_file,) = tmp_path.rglob("media/table/precision/*.json")
    table = json.loads(table_file.read_text())
    assert table["columns"] == ["layer", "headroom_bits"]
    assert [layer for layer, _ in table["data"]] == [f"net.{place}" for place in range(MAX_BARS)]
    assert table["data"][3][1] == pytest.approx(math.log2(65504) + 3)
    (run_file,) = tmp_path.rglob("*.wandb")
    assert b"wandb/bar/v0" in run_file.read_bytes()


def test_extreme_layers_are_those_near_an_end():
    samples = [
        sample("far"),
        sample("near", amax=60000.0),
        sample("nearer", amax=65000.0),
        sample("zeros", amax=0.0),
        sample("small", flushed=5, amax=2.0**-20),
        sample("tiny", flushed=6, amax=2.0**-21),
        sample("middling", amax=2.0),
        sample("beyond", amax=1e9, dtype="fp32"),
    ]
    assert extreme_layers(samples) == ["nearer", "tiny", "near", "small", "middling"]
    # Nothing else is left that could be extreme.
    assert extreme_layers([samples[0], samples[-1]]) == ["far", "beyond"]
    assert extreme_layers([sample("zeros", amax=0.0)]) == []


def test_layers_in_fp32_come_last_in_a_run_in_half_precision_alone():
    near, far = {"amax": 1e9, "dtype": "fp32"}, {"dtype": "fp32", "amax": 1.0}
    assert extreme_layers([sample("near", **near, compute_dtype="fp32"), sample("far", **far)])[0] == "near"
    # The gradient of an FP32 weight comes from a computation in half precision, unless it is beyond that.
    gradients = [
        sample("beyond", kind=PARAMETER, **near),
        sample("near", kind=PARAMETER, dtype="fp32", amax=6e4),
        sample("half"),
    ]
    assert extreme_layers(gradients) == ["near", "half", "beyond"]
    # What a layer in FP32 puts out tells of its gradients too.
    assert extreme_layers([*gradients, sample("near", **far)]) == ["half", "beyond", "near"]


def test_a_layer_that_was_extreme_once_keeps_its_curve_and_columns_are_few(tmp_path):
    logger = CSVLogger(tmp_path)
    tracked, trainer = TrackedLayers(LayerMetrics.extremes), trainer_with(logger)
    names = [f"net.{place}" for place in range(40)]
    for step in range(40):
        # Another one is nearest to the end in each step.
        tracked.log(
            trainer, [sample(name, amax=6e4 if place == step else 1.0) for place, name in enumerate(names)], step
        )
    rows = csv_rows(logger)
    layers = {name.split("/")[2] for name in rows[-1] if name != "step"}
    assert len(layers) == MAX_TRACKED
    assert "net.0" in layers
    assert all(rows[-1].values())
    filled = [sum(map(bool, row.values())) for row in rows]
    assert filled == sorted(filled)


def test_with_all_every_layer_is_logged_and_with_none_nothing(tmp_path):
    samples = [sample(f"net.{place}") for place in range(30)]
    for which, expected in ((LayerMetrics.all, 30 * 4 + 1), (LayerMetrics.none, 0)):
        logger = CSVLogger(tmp_path, name=which.value)
        TrackedLayers(which).log(trainer_with(logger), samples, step=0)
        assert len(csv_rows(logger)[0]) == expected if expected else not Path(logger.log_dir).exists()


def test_odd_names_stay_apart_in_every_tracker(tmp_path, wandb_logger):
    loggers: list[Logger] = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path), wandb_logger]
    samples = [sample(name, amax=float(place), exponents=COUNTED) for place, name in enumerate(ODD_NAMES, start=1)]
    TrackedLayers(LayerMetrics.all).log(trainer_with(*loggers), samples, step=0)
    (row,) = csv_rows(loggers[0])
    amaxes = {name: float(value) for name, value in row.items() if name.endswith("amax")}
    assert sorted(amaxes.values()) == [*range(1, len(ODD_NAMES) + 1)]
    assert amaxes["precision/layer/a_b/activation/amax"] == 1.0
    assert amaxes["precision/layer/a_b_2/activation/amax"] == 2.0
    assert amaxes["precision/layer/root/activation/amax"] == 4.0
    events = tensorboard_events(loggers[1])
    assert {name: events.Scalars(name)[0].value for name in amaxes} == amaxes
    assert len(events.Tags()["histograms"]) == len(ODD_NAMES)
    scalars, pictures = wandb_rows(wandb_logger, tmp_path)
    assert {name: scalars[name] for name in amaxes} == amaxes
    assert "precision/headroom_table" in pictures


class Unreachable(CSVLogger):
    """A tracker that cannot be reached."""

    calls = 0

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.calls += 1
        raise ConnectionError("no route to host")


def test_a_tracker_that_fails_is_told_of_once_and_others_go_on(tmp_path, caplog):
    broken, sound = Unreachable(tmp_path, name="broken"), CSVLogger(tmp_path, name="sound")
    tracked, trainer = TrackedLayers(LayerMetrics.all), trainer_with(broken, sound)
    caplog.clear()
    for step in range(3):
        tracked.log(trainer, [sample("net")], step)
    assert broken.calls == 1
    assert len(csv_rows(sound)) == 3
    (message,) = (record.getMessage() for record in caplog.records if record.name == "mp_plugin.layer_metrics")
    assert message.startswith("Unreachable cannot log layers (ConnectionError: no route to host); ")


def test_without_trackers_or_samples_nothing_happens(tmp_path):
    logger = CSVLogger(tmp_path)
    TrackedLayers(LayerMetrics.all).log(trainer_with(logger), [], step=0)
    TrackedLayers(LayerMetrics.all).log(quiet_trainer(), [sample("net")], step=0)
    assert not list(tmp_path.iterdir())


def test_a_csv_file_has_them_in_the_rows_of_the_run(tmp_path):
    logger, tracked = CSVLogger(tmp_path), TrackedLayers(LayerMetrics.all)
    trainer = trainer_with(logger)
    disconnect = tracked.connect(trainer)
    name = "precision/layer/head/activation/amax"
    for step in range(4):
        tracked.log(trainer, [sample("head", amax=step + 1.0)], step)
        if step == 1:
            logger.log_metrics({"val_loss": 1.0}, step=step)  # no row of training
        if step in (1, 2):
            logger.log_metrics({"precision/effective_step": 1.0 * step}, step=step)
    disconnect()
    rows = [(row["step"], row["precision/effective_step"], row[name]) for row in csv_rows(logger)]
    # The newest sample of each row; the last one has a row of its own, as no other came.
    assert rows == [("1", "", ""), ("1", "1.0", "2.0"), ("2", "2.0", "3.0"), ("3", "", "4.0")]
    assert "log_metrics" not in vars(logger)
