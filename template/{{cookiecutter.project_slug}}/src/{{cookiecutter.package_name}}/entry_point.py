"""How the scripts at the project's root start."""

import functools
import os
from collections.abc import Callable

from hydra.errors import HydraException

from {{cookiecutter.package_name}}.errors import refusing


def entry_point(main: Callable[[], None]) -> Callable[[], None]:
    """Make settings that do not compose end in one sentence on stderr and exit status 1, like all other bad settings.

    Args:
        main: a function decorated with `hydra.main`.
    """

    @functools.wraps(main)
    def run() -> None:
        before = os.environ.get("HYDRA_FULL_ERROR", "0")
        # Hydra hands exceptions on, rather than print them itself over several lines.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        try:
            with refusing(HydraException):
                main()
        finally:
            os.environ["HYDRA_FULL_ERROR"] = before

    return run
