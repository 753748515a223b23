"""What the command line tells a user whose request cannot be run."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from mp_plugin.errors import MpPluginError
from omegaconf.errors import OmegaConfBaseException

#: What bad settings raise, as opposed to bugs; only these lose their traceback.
BAD_REQUEST = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    MisconfigurationException,
    HydraException,
    OmegaConfBaseException,
    MpPluginError,
)

#: Whether the user asked for tracebacks; read at import, as `entry_point` sets the variable for Hydra.
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"


class Refusal(SystemExit):
    """The end of a request that cannot be run: its text goes to stderr, and the exit status is 1.

    A SystemExit, because Hydra adds lines of its own to every other exception.
    """


class JobRefused(HydraException):
    """The end of one job of a sweep; the others go on, and the sweep as a whole ends with this sentence."""


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions into a `Refusal` with the same message on one line; HYDRA_FULL_ERROR=1 leaves them alone.

    Args:
        *kinds: exceptions that a user's settings can cause here; any other is a bug and keeps its traceback.

    Raises:
        Refusal: for an exception of one of the kinds; in a sweep it is a `JobRefused`.
    """
    try:
        yield
    except kinds as error:
        if FULL_ERROR or not isinstance(_root(error), kinds):
            raise
        in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        raise (JobRefused if in_sweep else Refusal)(sentence(error)) from error


def sentence(error: Exception) -> str:
    """The message of an exception on one line, without Hydra's trimmings."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        accepted = ", ".join(name for name in error.options if name != "as_trained")  # of eval.py and predict.py
        return f"{group}={option} is unknown; accepted: {accepted}."
    if isinstance(error, OverrideParseException):  # Hydra would name a state of its parser
        return (
            f"{error.override} cannot be read as key=value: a value with anything but ASCII letters, digits, blanks "
            "and /-+.$%*@?: stands in quotes of its own, as in 'data.path=\"my texts/José (1).txt\"'."
        )
    text = " ".join(str(_root(error)).split())
    if re.search(r"Could not (override|append to config)[^']*'precision[./]scaling", text):
        return "precision/scaling is a choice of precision=fp16: bf16 and the other formats have no loss scaling."
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:  # Hydra would go on to suggest adding the misspelt setting
        # Of a group of settings that is overridden as a whole, the one that is unknown.
        inner = str(getattr(error.__cause__, "full_key", ""))
        setting = inner if inner.startswith(f"{unknown[1]}.") else unknown[1]
        return f"{setting} is not a setting of this project; `python train.py --cfg job` lists them."
    if isinstance(error, InstantiationException) and "full_key: " in str(error):
        place = str(error).rsplit("full_key: ", 1)[1].strip()
        # The precision plugin stands in trainer.plugins by reference.
        place = re.sub(r"^trainer\.plugins\[?0\]?", "precision", place)
        return f"{place}: {text}"
    return text


def _root(error: BaseException) -> BaseException:
    """The exception inside the target that Hydra was instantiating, or the exception itself."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error
