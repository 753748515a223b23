"""Models of timm, built without a download."""

import sys
from pathlib import Path

import pytest
import torch

from {{cookiecutter.package_name}}.models.timm_model import import_timm, make_timm_model
from {{cookiecutter.package_name}}.tasks.image_classification import TimmImageClassifier


def test_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'needs the package timm: pip install -e "\.\[timm\]"'):
        import_timm()


def test_torchvision_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="the one installed here does not fit torch"):
        import_timm()


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_size_channels_and_classes_come_from_the_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    model = TimmImageClassifier(name, num_classes=3, num_channels=1, image_size=32)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    assert "pretrained" not in model.hparams
    again = TimmImageClassifier(**model.hparams)
    again.load_state_dict(model.state_dict())


def test_unknown_names_and_sizes_are_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"model\.name=resnet81 is no model of timm; similar ones: .*resnet18"):
        make_timm_model("resnet81", False, 3, 10, 32, 0.0)
    with pytest.raises(ValueError, match=r"model\.name=qqqqqqqqqqqqqq is no model of timm; timm\.list_models\(\)"):
        make_timm_model("qqqqqqqqqqqqqq", False, 3, 10, 32, 0.0)
    with pytest.raises(ValueError, match=r"model\.name=vit_tiny_patch16_224 does not fit 8 pixels"):
        make_timm_model("vit_tiny_patch16_224", False, 3, 10, 8, 0.0)


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    def offline(*args: object, **options: object) -> None:
        raise OSError("No connection.")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError, match=r"model\.pretrained=true: the weights of resnet10t cannot .*: No connection\."):
        make_timm_model("resnet10t", True, 3, 10, 32, 0.0)
