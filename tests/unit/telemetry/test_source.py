import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mp_plugin.telemetry.source import Place, Site, call_site, is_in_backward, is_recomputing

HERE = Path(__file__)


def here() -> Site:
    """The site of whoever calls this: this function stands for an operator of torch."""
    return call_site(sys._getframe(1))


def line() -> int:
    return sys._getframe(1).f_lineno


@contextmanager
def decorated() -> Iterator[None]:
    yield


@decorated()
def in_a_decorated_function() -> tuple[Site, int]:
    return here(), line()


def in_a_lambda() -> tuple[Site, int]:
    return (lambda: (here(), line()))()


def in_a_partial() -> tuple[Site, int]:
    def called(_: int) -> tuple[Site, int]:
        return here(), line()

    return functools.partial(called, 1)()


def in_a_call_over_several_lines() -> tuple[Site, int]:
    first = line() + 1
    site = functools.partial(
        here,
    )()
    return site, first


def in_a_comprehension() -> tuple[Site, int]:
    return [(here(), line()) for _ in range(1)][0]


@pytest.mark.parametrize(
    "call",
    [in_a_decorated_function, in_a_lambda, in_a_partial, in_a_call_over_several_lines, in_a_comprehension],
    ids=lambda call: call.__name__,
)
def test_the_innermost_line_of_user_code(call: Callable[[], tuple[Site, int]]) -> None:
    site, expected = call()
    assert site.place is not None
    assert (Path(site.place.file), site.place.line, site.applied_at) == (HERE, expected, None)


def compiled(name: str, text: str = "def call(here):\n    return here()\n", **names: Any) -> Callable[..., Any]:
    """A function whose code says that it comes from this file."""
    exec(compile(text, name, "exec"), names)
    return names["call"]


SITE_PACKAGES = str(Path(torch.__file__).parents[1])


@pytest.mark.parametrize(
    "name",
    ["<stdin>", "<ipython-input-3-1>", "/tmp/ipykernel_7/1.py", f"{SITE_PACKAGES}/timm/layers/norm.py"],
)
def test_what_counts_as_user_code(name: str) -> None:
    assert compiled(name)(here).place == Place(name, 2, "call")


@pytest.mark.parametrize(
    "name",
    [
        "<frozen importlib._bootstrap>",
        "<eval_with_key>.3",
        "<string>",
        functools.__file__,
        f"{SITE_PACKAGES}/torch/nn/modules/linear.py",
        f"{SITE_PACKAGES}/lightning/pytorch/core/module.py",
        f"{SITE_PACKAGES}/torchmetrics/metric.py",
        str(Path(sys.modules["mp_plugin"].__file__ or "").parent / "scaling" / "scaler.py"),
    ],
)
def test_what_does_not(name: str) -> None:
    site, expected = compiled(name)(here), line()
    assert site.place == Place(str(HERE), expected, "test_what_does_not")


def test_nothing_is_found_beyond_the_training_loop() -> None:
    loop = compiled(f"{SITE_PACKAGES}/lightning/pytorch/loops/fit_loop.py")
    assert loop(here).place is None
    inside = compiled("model.py")
    assert loop(lambda: inside(here)).place is not None


def test_code_on_the_command_line_is_user_code() -> None:
    code = "import sys; from mp_plugin.telemetry.source import call_site; print(call_site(sys._getframe()).place)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "<string>:1 in <module>"


def test_a_place_is_relative_to_the_working_directory_if_it_lies_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(Place(str(tmp_path / "models" / "net.py"), 7, "forward")) == "models/net.py:7 in forward"
    assert str(Place(f"{tmp_path}2/net.py", 7, "forward")) == f"{tmp_path}2/net.py:7 in forward"
    assert str(Place("<stdin>", 1, "f")) == "<stdin>:1 in f"


SEEN: list[Site] = []


class Spy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        SEEN.append(here())
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        SEEN.append(here())
        return gradient


class DecoratedSpy(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        SEEN.append(here())
        return x.clone()

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        SEEN.append(here())
        return gradient


@pytest.mark.parametrize("function", [Spy, DecoratedSpy])
def test_a_function_of_the_users_is_known_by_its_application(function: type[torch.autograd.Function]) -> None:
    SEEN.clear()
    x = torch.ones(1, requires_grad=True)
    y = function.apply(x)  # type: ignore[no-untyped-call]
    applied = line() - 1
    y.backward()
    forward, backward = SEEN
    assert forward.applied_at == Place(str(HERE), applied, "test_a_function_of_the_users_is_known_by_its_application")
    assert backward.applied_at is None
    for site, name in ((forward, "forward"), (backward, "backward")):
        assert site.is_inside_function
        assert site.place is not None
        assert site.place.function == name


def test_a_hook_is_no_part_of_a_function() -> None:
    seen = []
    x = torch.ones(1, requires_grad=True)
    y = x * 1
    y.register_hook(lambda _: seen.append((here(), is_in_backward(sys._getframe()))))
    y.backward()
    ((site, is_asked),) = seen
    assert site.place is not None
    assert (site.place.function, site.is_inside_function, is_asked) == ("<lambda>", False, True)
    assert not is_in_backward(sys._getframe())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_code_is_told_from_the_backward_pass_around_it(use_reentrant: bool) -> None:
    seen = []

    class Noting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            seen.append(("forward", is_recomputing(sys._getframe()), is_in_backward(sys._getframe())))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            seen.append(("backward", is_recomputing(sys._getframe()), is_in_backward(sys._getframe())))
            return gradient

    x = torch.ones(1, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(lambda x: Noting.apply(x).exp(), x, use_reentrant=use_reentrant)
    y.backward()
    # The first forward is run by the checkpoint too, but no backward pass asked for it.
    assert seen == [("forward", True, False), ("forward", True, True), ("backward", False, True)]
