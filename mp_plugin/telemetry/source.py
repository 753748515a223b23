"""The line of user code that an operator runs on behalf of."""

import functools
import os
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch


class Place(NamedTuple):
    """A line of source code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        """Show `file:line in function`, the file relative to the working directory if it lies below."""
        return f"{_short(self.file)}:{self.line} in {self.function}"


class Site(NamedTuple):
    """Where in user code an operator was called."""

    place: Place | None
    """Innermost frame outside torch, Lightning and this package; None if the backward pass called it by itself."""
    applied_at: Place | None = None
    """For an operator inside a custom autograd Function: where the Function was applied."""
    is_inside_function: bool = False
    """Whether the place is inside a custom autograd Function."""


def call_site(frame: FrameType | None) -> Site:
    """Find the user code above a frame, up to where a backward pass or a training loop began.

    Example:
        >>> import sys
        >>> def forward():
        ...     return call_site(sys._getframe())
        >>> forward().place.function
        'forward'
    """
    place = None
    while frame is not None:
        code = frame.f_code
        kind = _kind(code.co_filename) if code.co_filename != _STRING else _kind_of_string(frame)
        if kind == "loop" or (kind == "torch" and code.co_name == _ENGINE):
            break
        if kind == "user":
            here = Place(code.co_filename, frame.f_lineno, code.co_name)
            if place is not None:
                return Site(place, here, True)
            place = here
            if not _is_called_by_function(frame):
                return Site(place)
        frame = frame.f_back
    return Site(place, None, place is not None)


def is_recomputing(frame: FrameType | None) -> bool:
    """Whether a frame is part of a forward pass that activation checkpointing runs again during the backward pass."""
    while frame is not None:
        if frame.f_code.co_name == _ENGINE:
            return False
        if frame.f_code.co_filename == _CHECKPOINT_FILE:
            return True
        frame = frame.f_back
    return False


def is_in_backward(frame: FrameType | None) -> bool:
    """Whether Python code of this thread asked for the backward pass that runs."""
    while frame is not None:
        if frame.f_code.co_name == _ENGINE:
            return True
        frame = frame.f_back
    return False


def _is_called_by_function(frame: FrameType) -> bool:
    """Whether a frame is `forward` or `backward` of a custom autograd Function, or decorated as one."""
    caller = frame.f_back
    while caller is not None and caller.f_code.co_filename.startswith(_WRAPPERS):
        if caller.f_code.co_filename == _FUNCTION_FILE and caller.f_code.co_name == "apply":
            return True
        caller = caller.f_back
    return False


def _kind_of_string(frame: FrameType) -> str:
    # `python -c` calls itself so, and so does what the standard library writes, for dataclasses for one.
    return "user" if frame.f_globals.get("__name__") == "__main__" else "other"


@functools.cache
def _kind(file: str) -> str:
    # The Python inside Python, and the code that torch.fx writes.
    if file.startswith(("<frozen", "<eval_with_key>", _OWN)):
        return "other"
    if file.startswith(_TORCH):
        return "torch"
    if file.startswith(_LOOPS):
        return "loop"
    is_standard = file.startswith(_STANDARD) and not file.startswith(_PACKAGES)
    return "other" if is_standard or file.startswith(_LIGHTNING) else "user"


def _short(file: str) -> str:
    here = os.path.join(os.getcwd(), "")
    return file.removeprefix(here)


_TORCH = str(Path(torch.__file__).parent) + os.sep
_OWN = str(Path(__file__).parents[1]) + os.sep
_SITES = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(torch.__file__).parents[1])}
_PACKAGES = tuple(site + os.sep for site in _SITES)
_STANDARD = str(Path(sysconfig.get_path("stdlib"))) + os.sep


def _folders(*packages: str) -> tuple[str, ...]:
    """Where packages are installed, without importing them: this floor does not know Lightning."""
    specs = (find_spec(package) for package in packages)
    return tuple(os.path.join(path, "") for spec in specs if spec for path in spec.submodule_search_locations or ())


_LIGHTNING = _folders("lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics")
# Above these lies what called the training, a script or a test.
_LOOPS = tuple(
    os.path.join(folder, *place, name) + os.sep
    for folder in _folders("lightning", "pytorch_lightning")
    for place in ((), ("pytorch",))
    for name in ("loops", "strategies", "trainer", "plugins")
)
_CHECKPOINT_FILE = os.path.join(_TORCH, "utils", "checkpoint.py")
_FUNCTION_FILE = os.path.join(_TORCH, "autograd", "function.py")
# Between a Function and its forward or backward: itself, custom operators, decorators of mixed precision.
_WRAPPERS = tuple(
    os.path.join(_TORCH, *name.split("/"))
    for name in ("autograd/function.py", "_library/", "_functorch/autograd_function.py", "amp/", "_dynamo/")
)
_ENGINE = "_engine_run_backward"
_STRING = "<string>"
