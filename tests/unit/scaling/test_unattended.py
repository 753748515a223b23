import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from mp_plugin.config import LossScaling
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.step_plan import Route, StepPlan
from mp_plugin.scaling.unattended import UnattendedGradients
from mp_plugin.scaling.verdict import Verdict, read_answers

SCALE = 8.0
TRUE = [[3.0, 0.0], [4.0]]
"""Of norm 5."""


def optimizer_with(*gradients: list[float], fused: bool = True) -> SGD:
    parameters = [torch.nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return SGD(parameters, lr=1.0, fused=fused)


def scaled() -> list[list[float]]:
    return [[SCALE * value for value in gradient] for gradient in TRUE]


def scaler(policy: Any = "dynamic") -> LossScaler:
    return LossScaler(LossScaling(init_scale=SCALE, policy=policy))


def grads_of(optimizer: SGD) -> list[list[float]]:
    return [parameter.grad.tolist() for parameter in optimizer.param_groups[0]["params"]]


def weights_of(optimizer: SGD) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in optimizer.param_groups[0]["params"]]


def folded(max_norm: float | None = None) -> StepPlan:
    return StepPlan(route=Route.folded, max_norm=max_norm)


@pytest.mark.parametrize("policy", ["dynamic", "predictive"])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_the_verdict_tells_what_is_needed(policy: str, max_norm: float | None) -> None:
    optimizer = optimizer_with(*scaled())
    verdict = UnattendedGradients(optimizer, folded(max_norm), scaler(policy)).agree()
    expected = Verdict(
        overflowed=False,
        has_gradients=True,
        amax=4.0 if policy == "predictive" else 0.0,
        norm=0.0 if max_norm is None else 5 * SCALE,
    )
    assert verdict == expected
    assert grads_of(optimizer) == scaled(), "nobody touches them yet"


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_what_is_not_finite_is_noticed(value: float, max_norm: float | None) -> None:
    gradients = UnattendedGradients(optimizer_with([1.0], [0.0, value]), folded(max_norm), scaler())
    assert gradients.agree().overflowed
    assert read_answers(gradients.ask()).overflowed
    marks = gradients.totals.marks
    assert marks is not None
    assert marks.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("policy", ["dynamic", "predictive"])
def test_to_ask_is_to_agree_later(policy: str) -> None:
    gradients = UnattendedGradients(optimizer_with(*scaled()), folded(1.0), scaler(policy))
    assert read_answers(gradients.ask()) == gradients.agree()


def test_without_gradients_there_is_nothing_to_do() -> None:
    optimizer = optimizer_with([1.0])
    optimizer.zero_grad()
    gradients = UnattendedGradients(optimizer, folded(1.0), scaler("predictive"))
    assert gradients.agree() == Verdict(overflowed=False, has_gradients=False)
    with gradients.folding(None, torch.zeros(())):
        assert optimizer.grad_scale is None  # type: ignore[attr-defined]
        optimizer.step()
    gradients.unscale_and_clip_(gradients.agree())
    assert weights_of(optimizer)[0].tolist() == [0.0]


@pytest.mark.parametrize(
    ("scale", "max_norm", "expected"),
    [
        (SCALE, 1.0, [[0.6, 0.0], [0.8]]),
        (SCALE, 10.0, TRUE),
        (1.0, 1.0, [[0.6, 0.0], [0.8]]),
        (1.0, 10.0, TRUE),
    ],
)
@pytest.mark.parametrize("route", [Route.folded, Route.one_pass])
def test_both_routes_step_with_true_and_clipped_gradients(
    route: Route, scale: float, max_norm: float, expected: list[list[float]]
) -> None:
    given = TRUE if scale == 1.0 else scaled()
    optimizer = optimizer_with(*given, fused=route is Route.folded)
    gradients = UnattendedGradients(
        optimizer, StepPlan(route=route, max_norm=max_norm), None if scale == 1.0 else scaler()
    )
    verdict = gradients.agree()
    gradients.unscale_and_clip_(verdict)
    left = expected if route is Route.one_pass else given
    torch.testing.assert_close(
        [torch.tensor(each) for each in grads_of(optimizer)], [torch.tensor(each) for each in left]
    )
    with gradients.folding(verdict):
        optimizer.step()
    torch.testing.assert_close(weights_of(optimizer), [-torch.tensor(each) for each in expected])


@pytest.mark.parametrize("route", [Route.folded, Route.one_pass])
def test_healthy_gradients_below_the_norm_are_not_written(route: Route) -> None:
    optimizer = optimizer_with(*TRUE, fused=route is Route.folded)
    gradients = UnattendedGradients(optimizer, StepPlan(route=route, max_norm=5.1), None)
    versions = [parameter.grad._version for parameter in optimizer.param_groups[0]["params"]]
    verdict = gradients.agree()
    gradients.unscale_and_clip_(verdict)
    with gradients.folding(verdict):
        assert getattr(optimizer, "grad_scale", None) is None
    assert [parameter.grad._version for parameter in optimizer.param_groups[0]["params"]] == versions


@pytest.mark.parametrize("max_norm", [5.0, 5.0 + 5e-7])
def test_a_norm_at_the_limit_is_clipped_as_torch_clips_it(max_norm: float) -> None:
    """Its small number in the denominator makes the coefficient less than 1 already there."""
    optimizer = optimizer_with(*TRUE, fused=False)
    gradients = UnattendedGradients(optimizer, StepPlan(route=Route.one_pass, max_norm=max_norm), None)
    gradients.unscale_and_clip_(gradients.agree())
    oracle = optimizer_with(*TRUE)
    torch.nn.utils.clip_grad_norm_(oracle.param_groups[0]["params"], max_norm)
    assert grads_of(optimizer) == grads_of(oracle)


def test_nobody_who_waits_is_told_to_skip() -> None:
    optimizer = optimizer_with(*scaled())
    gradients = UnattendedGradients(optimizer, folded(), scaler())
    with gradients.folding(gradients.agree()):
        assert optimizer.found_inf is None  # type: ignore[attr-defined]


def test_without_a_verdict_the_device_divides_in_any_case_and_skips() -> None:
    for value, moved in ((1.0, True), (math.inf, False)):
        optimizer = optimizer_with([value])
        gradients = UnattendedGradients(optimizer, folded(100.0), None)
        with gradients.folding(None, gradients.ask()[1]):
            optimizer.step()
        assert (weights_of(optimizer)[0].item() != 0) is moved


def test_it_keeps_no_gradient() -> None:
    """It lives until the next step; they must not."""
    optimizer = optimizer_with(*scaled())
    gradients = UnattendedGradients(optimizer, folded(1.0), scaler("predictive"))
    references = [weakref.ref(parameter.grad) for parameter in optimizer.param_groups[0]["params"]]
    optimizer.zero_grad()
    assert [reference() for reference in references] == [None, None]
    assert gradients.agree().has_gradients, "what is known of them stays"
