"""What a process other than the first does: it calls a function with the config that comes through its standard input.

Started by `launch.py` as `python -m {{cookiecutter.package_name}}.other_process module:function`.
"""

import importlib
import os
import pickle
import sys
import threading
import traceback


def main() -> None:
    """Call the function that the command line names, and end; also as soon as the first process is gone."""
    config = pickle.load(sys.stdin.buffer)
    # A descriptor of its own: workers of a data loader close sys.stdin, and would wait for who reads from it.
    pipe = os.dup(sys.stdin.fileno())
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    threading.Thread(target=_end_with_the_first, args=(pipe,), daemon=True).start()
    module, _, name = sys.argv[1].partition(":")
    status = 1
    try:
        getattr(importlib.import_module(module), name)(config)
        status = 0
    except SystemExit as refusal:
        print(f"Process {os.environ['LOCAL_RANK']}: {refusal.code}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by way of the interpreter's end, where threads of gloo may abort the process (pytorch#179291).
    os._exit(status)


def _end_with_the_first(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
