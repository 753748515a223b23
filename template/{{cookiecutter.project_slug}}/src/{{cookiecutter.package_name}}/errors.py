"""What the command line tells a user whose request cannot be run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from lightning.fabric.utilities.exceptions import MisconfigurationException
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
)

#: Whether the user asked for tracebacks; read at import, as `entry_point` sets the variable for Hydra.
FULL_ERROR = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"


class Refusal(SystemExit):
    """The end of a request that cannot be run: its text goes to stderr, and the exit status is 1.

    A SystemExit, because Hydra adds lines of its own to every other exception.
    """


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Turn exceptions into a `Refusal` with the same message on one line; HYDRA_FULL_ERROR=1 leaves them alone.

    Args:
        *kinds: exceptions that a user's settings can cause here; any other is a bug and keeps its traceback.

    Raises:
        Refusal: for an exception of one of the kinds.
    """
    try:
        yield
    except kinds as error:
        if FULL_ERROR or not isinstance(_root(error), kinds):
            raise
        raise Refusal(sentence(error)) from error


def sentence(error: Exception) -> str:
    """The message of an exception on one line, without Hydra's trimmings."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option} is unknown; accepted: {', '.join(error.options)}."
    text = " ".join(str(_root(error)).split())
    if isinstance(error, InstantiationException) and "full_key: " in str(error):
        return f"{str(error).rsplit('full_key: ', 1)[1].strip()}: {text}"
    return text


def _root(error: BaseException) -> BaseException:
    """The exception inside the target that Hydra was instantiating, or the exception itself."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error
