"""Any model of timm, by name."""

import difflib
import importlib
from typing import Any

import torch
from torch import nn


def make_timm_model(
    name: str, pretrained: bool, num_channels: int, num_classes: int, image_size: int, dropout: float
) -> nn.Module:
    """A model of timm, made for some images.

    Args:
        name: as `timm.list_models()` has it.
        pretrained: download weights that were trained on other images.
        num_channels: channels of an image.
        num_classes: number of classes.
        image_size: height and width of an image in pixels.
        dropout: share of the features dropped before the last layer.

    Raises:
        ImportError: if timm is missing, or the torchvision that it needs does not fit torch.
        OSError: if its weights cannot be downloaded.
        ValueError: if there is no such model, or not for such images.
    """
    timm = import_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        hint = f"similar ones: {', '.join(near)}" if near else "timm.list_models() lists them"
        raise ValueError(f"model.name={name} is no model of timm; {hint}.")
    # Transformers and their like are made for one size of images; the others take any.
    fixed = timm.get_pretrained_cfg(name, allow_unregistered=True)
    size = {"img_size": image_size} if getattr(fixed, "fixed_input_size", False) else {}
    options = {"in_chans": num_channels, "num_classes": num_classes, "drop_rate": dropout, **size}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
        with torch.no_grad():  # some take any size, and break down at their first image
            model.eval()(torch.zeros(1, num_channels, image_size, image_size))
        return model.train()
    except OSError as error:
        reason = " ".join(str(error).split())
        raise OSError(f"model.pretrained=true: the weights of {name} cannot be downloaded: {reason}") from error
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"model.name={name} does not fit {image_size} pixels with {options}: {reason}") from error


def import_timm() -> Any:
    """The package timm.

    Raises:
        ImportError: says how to install it, or what is wrong with torchvision.
    """
    try:
        return importlib.import_module("timm")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        raise ImportError(
            f"timm needs torchvision, and the one installed here does not fit torch ({error}): "
            "install both from the same index, such as https://download.pytorch.org/whl/cpu."
        ) from error
    except ImportError as error:
        if error.name != "timm":
            raise ImportError(f"timm cannot be imported: {error}.") from error
        raise ImportError('model=timm needs the package timm: pip install -e ".[timm]".') from error
