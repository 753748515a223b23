"""Every route from the gradients to the step: which one is taken, and that none of them changes what is learned."""

import functools
import weakref
from types import MethodType
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW
from torch.optim.lr_scheduler import StepLR

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.scaling.step_plan import Route
from tests.helpers.training import Regression, assert_bitwise_equal, fit, overflowing_at, regression_data, weights

SCALE = 2.0**10
CLIP = 0.05
CLIPPED = {"gradient_clip_val": CLIP}
CLIPPING: dict[str, dict[str, Any]] = {"unclipped": {}, "clipped": CLIPPED}
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    # Where a gradient is near zero, Adam's step has its full length and the sign of a rounding error: hence the eps.
    "adam": (Adam, {"lr": 0.01, "eps": 0.01, "amsgrad": True}),
    "adamw": (AdamW, {"lr": 0.01, "eps": 0.01}),
    "adagrad": (Adagrad, {"lr": 0.01, "eps": 0.01}),
}
FOLDED, ONE_PASS, SEPARATE = (Route.folded, True), (Route.one_pass, True), (Route.separate, True)
LATE = (Route.folded, False)


def plugin_of(precision: str = "fp16", *, scale: float = SCALE, exact: bool | None = None, **options: Any) -> Any:
    scaling = LossScaling(init_scale=scale, **options) if precision == "fp16" else None
    return AdaptivePrecision(precision, scaling=scaling, exact=exact)


class Looking(Callback):
    """Somebody who may look at gradients before the step, and so keeps them on the separate route."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.norms.append(norm_of(pl_module))


class Plans(Callback):
    """How each step was made."""

    def __init__(self) -> None:
        self.seen: list[tuple[Route, bool]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        plan = trainer.precision_plugin.step_plan
        self.seen.append((plan.route, plan.is_exact))


def norm_of(module: nn.Module) -> float:
    grads = [parameter.grad.double() for parameter in module.parameters() if parameter.grad is not None]
    return torch.stack([grad.norm() for grad in grads]).norm().item()


def train(plugin: Any, model: Regression, *callbacks: Callback, data: Any = None, **options: Any) -> Any:
    """Returns the model and, if all steps were made alike, how."""
    plans = Plans()
    fit(plugin, model, data, callbacks=[plans, *callbacks], **options)
    return model, plans.seen


def routed(plugin: Any, model: Any = None, *callbacks: Callback, **options: Any) -> set[tuple[Route, bool]]:
    _, seen = train(plugin, Regression(fused=True) if model is None else model, *callbacks, **options)
    assert seen, "no step was made"
    return set(seen)


# All routes give the same weights.


def model_of(name: str, **options: Any) -> Regression:
    optimizer, settings = OPTIMIZERS[name]
    return Regression(optimizer=optimizer, **settings, **options)


@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_fused_step_is_the_same_on_all_its_routes(precision: str, name: str, clipping: str) -> None:
    """By a power of two it does not matter who divides; clipping rounds once less if it is folded."""
    found = {}
    for exact, callbacks in ((True, []), (False, []), (True, [Looking()])):
        model, seen = train(
            plugin_of(precision, exact=exact), model_of(name, fused=True), *callbacks, **CLIPPING[clipping]
        )
        found[seen[-1]] = weights(model)
    assert set(found) == {FOLDED, LATE, SEPARATE}
    assert_bitwise_equal(found[FOLDED], found[LATE])
    if clipping == "unclipped":
        assert_bitwise_equal(found[FOLDED], found[SEPARATE])
    else:
        torch.testing.assert_close(found[FOLDED], found[SEPARATE], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_one_pass_clips_as_two_do_bit_by_bit(precision: str, name: str) -> None:
    model, seen = train(plugin_of(precision), model_of(name, foreach=True), gradient_clip_val=CLIP)
    oracle, oracle_seen = train(plugin_of(precision), model_of(name, foreach=True), Looking(), gradient_clip_val=CLIP)
    assert (set(seen), set(oracle_seen)) == ({ONE_PASS}, {SEPARATE})
    assert_bitwise_equal(weights(model), weights(oracle))


@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scale_that_is_no_power_of_two_costs_a_last_bit_or_two(name: str, clipping: str) -> None:
    """Division and the multiplication by a reciprocal round differently: within 1e-6 of each other after 8 steps."""
    found = {}
    for options, callbacks in (({"fused": True}, []), ({"foreach": True}, []), ({"fused": True}, [Looking()])):
        model, seen = train(plugin_of(scale=1000.1), model_of(name, **options), *callbacks, **CLIPPING[clipping])
        found[tuple(options), seen[-1]] = weights(model)
    first, *others = found.values()
    unfused = ONE_PASS if clipping == "clipped" else SEPARATE
    assert set(found) == {(("fused",), FOLDED), (("foreach",), unfused), (("fused",), SEPARATE)}
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}], ids=str)
def test_half_weights_are_clipped_by_a_norm_that_is_not_rounded(options: dict[str, Any]) -> None:
    """torch rounds the norm of bf16 gradients to bf16; one pass does not. One step differs by one bf16 rounding."""
    model, seen = train(plugin_of("bf16-true"), Regression(**options), data=regression_data(batches=1), **CLIPPED)
    start = weights(Regression())
    oracle, oracle_seen = train(
        plugin_of("bf16-true"), Regression(**options), Looking(), data=regression_data(batches=1), **CLIPPED
    )
    assert (seen, oracle_seen) == ([ONE_PASS], [SEPARATE])
    for ours, theirs, before in zip(weights(model), weights(oracle), start, strict=True):
        largest_step = (theirs - before.bfloat16()).abs().max().item()
        # The steps are rounded to where the weights lie: one unit in the last place of those, and of the steps.
        torch.testing.assert_close(ours, theirs, rtol=2.0**-7, atol=2.0**-7 * largest_step)


# What is left in the gradients.


class Afterwards(Callback):
    """The norm of the gradients once the step is over."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.norms.append(norm_of(pl_module))


@pytest.mark.parametrize("clipping", CLIPPING)
@pytest.mark.parametrize(
    ("options", "exact", "route"),
    [
        ({"fused": True}, True, FOLDED),
        ({"fused": True}, False, LATE),
        ({"foreach": True}, True, ONE_PASS),
    ],
)
def test_gradients_are_true_and_clipped_after_the_step(
    options: dict[str, Any], exact: bool, route: tuple[Route, bool], clipping: str
) -> None:
    after, oracle = Afterwards(), Looking()
    if clipping == "unclipped" and not options.get("fused"):
        route = SEPARATE
    assert routed(plugin_of(exact=exact), Regression(**options), after, **CLIPPING[clipping]) == {route}
    fit(plugin_of(), Regression(**options), callbacks=[oracle], **CLIPPING[clipping])
    true_norms = torch.tensor(oracle.norms)
    expected = true_norms.clamp(max=CLIP) if clipping == "clipped" else true_norms
    torch.testing.assert_close(torch.tensor(after.norms), expected, rtol=2e-5, atol=0)
    assert (true_norms > CLIP).any(), "nothing was clipped"


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("exact", [True, False])
def test_gradients_do_not_outlive_their_step(options: dict[str, Any], exact: bool) -> None:
    """They would lie beside those of the next backward pass, and double the memory of gradients."""
    alive: list[int] = []

    class Counting(Regression):
        earlier: list[Any] = []

        def on_after_backward(self) -> None:
            alive.append(sum(gradient() is not None for gradient in self.earlier))
            self.earlier = [weakref.ref(parameter.grad) for parameter in self.parameters()]

    fit(plugin_of(exact=exact), Counting(fault=overflowing_at(3), **options), **CLIPPED)
    # Batch 3 is run again, if somebody waits for it.
    assert set(alive) == {0}


# Whoever may look at gradients, or makes the step in a way of its own, keeps them on the separate route.


class ConfiguresClipping(Regression):
    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")


class Clips(Regression):
    def clip_gradients(self, *args: Any, **kwargs: Any) -> None:
        super().clip_gradients(*args, **kwargs)


class LooksItself(Regression):
    def on_before_optimizer_step(self, optimizer: Any) -> None: ...


@pytest.mark.parametrize("model", [ConfiguresClipping, Clips, LooksItself])
def test_a_module_that_may_look(model: type[Regression]) -> None:
    options = {} if model is ConfiguresClipping else CLIPPED
    plugin = plugin_of(exact=False)
    ours, seen = train(plugin, model(fused=True), **options)
    assert set(seen) == {SEPARATE}
    oracle = fit(plugin_of(), Regression(fused=True), callbacks=[Looking()], **CLIPPED)
    assert_bitwise_equal(weights(ours), weights(oracle))


def test_a_hook_that_is_set_on_the_instance_counts() -> None:
    model = Regression(fused=True)
    model.on_before_optimizer_step = lambda optimizer: None  # type: ignore[method-assign]
    assert routed(plugin_of(), model) == {SEPARATE}


class SeesItAll(Regression):
    """Hooks that see the gradients when they are scaled in stock too, or when the step is over."""

    def on_after_backward(self) -> None: ...
    def on_before_zero_grad(self, optimizer: Any) -> None: ...
    def on_before_backward(self, loss: Tensor) -> None: ...
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad()


def test_other_hooks_change_nothing() -> None:
    assert routed(plugin_of(exact=False), SeesItAll(fused=True), Afterwards()) == {LATE}


@pytest.mark.parametrize("hook", ["clip_gradients", "clip_grad_by_norm", "_after_closure", "main_params"])
def test_a_plugin_that_clips_its_own_way(hook: str) -> None:
    def own(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(AdaptivePrecision, hook)(self, *args, **kwargs)

    own.__module__ = __name__
    plugin = type("Own", (AdaptivePrecision,), {hook: own})("fp16", scaling=LossScaling(init_scale=SCALE), exact=False)
    assert routed(plugin, **CLIPPED) == {SEPARATE}


def test_a_plugin_that_clips_as_we_do() -> None:
    class Named(AdaptivePrecision):
        """Nothing of its own."""

    assert routed(Named("fp16", exact=False), **CLIPPED) == {LATE}


def test_clipping_by_value_is_a_pass_of_its_own() -> None:
    options = {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"}
    assert routed(plugin_of(exact=False), **options) == {SEPARATE}


def test_clipping_may_begin_in_the_middle_of_a_run() -> None:
    class ClipsLater(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            trainer.gradient_clip_val = CLIP if batch_idx >= 4 else None

    after = Afterwards()
    model, seen = train(plugin_of(), Regression(foreach=True), ClipsLater(), after)
    assert seen == [SEPARATE] * 4 + [ONE_PASS] * 4
    assert max(after.norms[4:]) <= CLIP * (1 + 1e-5) < max(after.norms[:4])


class Hooked(Callback):
    """Registers a hook of the optimizer's own, before a batch."""

    def __init__(self, batch_idx: int, register: str = "register_step_pre_hook") -> None:
        self.batch_idx, self.register, self.norms = batch_idx, register, list[float]()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch_idx:
            look = lambda *_: self.norms.append(norm_of(pl_module))  # noqa: E731
            getattr(trainer.optimizers[0], self.register)(look)


@pytest.mark.parametrize("batch_idx", [0, 5])
@pytest.mark.parametrize("exact", [True, False])
def test_a_hook_of_the_optimizer_sees_true_gradients_from_its_first_step_on(batch_idx: int, exact: bool) -> None:
    oracle, hooked = Looking(), Hooked(batch_idx)
    _, seen = train(plugin_of(exact=exact), Regression(fused=True), hooked)
    before = FOLDED if exact else LATE
    assert seen == [before] * batch_idx + [SEPARATE] * (8 - batch_idx)
    fit(plugin_of(), Regression(fused=True), callbacks=[oracle])
    assert hooked.norms == oracle.norms[batch_idx:]


def test_a_hook_after_the_step_sees_true_gradients_too() -> None:
    oracle, hooked = Looking(), Hooked(0, "register_step_post_hook")
    assert routed(plugin_of(exact=False), None, hooked) == {LATE}
    fit(plugin_of(), Regression(fused=True), callbacks=[oracle])
    assert hooked.norms == pytest.approx(oracle.norms, rel=1e-12)


def test_a_hook_on_all_optimizers_sees_true_gradients() -> None:
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    undo = register_optimizer_step_pre_hook(lambda *_: None)
    try:
        assert routed(plugin_of(exact=False)) == {SEPARATE}
    finally:
        undo.remove()


class OwnStep(SGD):
    """A step that looks at its gradients first."""

    norms: list[float] = []

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        result = closure()
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        self.norms.append(torch.stack([grad.double().norm() for grad in grads]).norm().item())
        super().step()
        return result


def test_a_subclass_with_a_step_of_its_own_sees_true_gradients() -> None:
    oracle = Looking()
    OwnStep.norms.clear()
    assert routed(plugin_of(exact=False), Regression(optimizer=OwnStep, fused=True)) == {SEPARATE}
    fit(plugin_of(), Regression(fused=True), callbacks=[oracle])
    assert OwnStep.norms == oracle.norms


def test_a_subclass_without_a_step_of_its_own_folds() -> None:
    class Named(SGD):
        """Nothing of its own."""

    assert routed(plugin_of(exact=False), Regression(optimizer=Named, fused=True)) == {LATE}


class Scheduled(Regression):
    """torch's schedulers wrap the step of the optimizer."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [{"scheduler": StepLR(optimizer, 2, 0.5), "interval": "step"}]


@pytest.mark.parametrize("exact", [True, False])
def test_a_scheduler_that_wraps_the_step_changes_nothing(exact: bool) -> None:
    model, seen = train(plugin_of(exact=exact), Scheduled(fused=True), **CLIPPED)
    oracle, oracle_seen = train(plugin_of(), Scheduled(foreach=True), **CLIPPED)
    assert (set(seen), set(oracle_seen)) == ({FOLDED if exact else LATE}, {ONE_PASS})
    torch.testing.assert_close(weights(model), weights(oracle), rtol=0, atol=1e-6)


def wrap(optimizer: Any, how: str) -> None:
    step = optimizer.step
    if how == "compiled":
        optimizer.step = torch.compile(step, backend="eager")
    elif how == "wrapped":
        optimizer.step = functools.wraps(step)(lambda *args, **kwargs: step(*args, **kwargs))
    else:
        optimizer.step = MethodType(lambda self, *args, **kwargs: step(*args, **kwargs), optimizer)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize(
    ("how", "order"),
    [
        *[(how, order) for how in ("compiled", "wrapped", "method") for order in ("alone", "scheduled first")],
        ("method", "scheduled last"),  # torch's schedulers wrap methods only
    ],
)
def test_a_step_that_was_replaced_gets_true_gradients(how: str, order: str) -> None:
    class Wrapped(Regression):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            if order == "scheduled first":
                StepLR(optimizer, 100)
            wrap(optimizer, how)
            if order == "scheduled last":
                StepLR(optimizer, 100)
            return optimizer

    model, seen = train(plugin_of(exact=False), Wrapped(fused=True))
    # torch runs a fused step as it is, compiled or not.
    assert set(seen) == ({LATE} if (how, order) == ("compiled", "alone") else {SEPARATE})
    assert_bitwise_equal(weights(model), weights(fit(plugin_of(), Regression(fused=True))))
    torch._dynamo.reset()


# Gradients of other kinds.


class Words(Regression):
    """With a table whose gradient may be sparse."""

    def __init__(self, *, sparse: bool, **options: Any) -> None:
        super().__init__(**options)
        self.table = nn.Embedding(4, 8, sparse=sparse)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        return super().training_step([inputs + self.table(torch.tensor([1, 2, 3, 2])), targets], batch_idx)


def test_sparse_gradients_are_not_folded() -> None:
    """torch has no way to clip them, and no fused optimizer that takes them."""
    assert routed(plugin_of(exact=False), Words(sparse=True)) == {SEPARATE}


def test_dense_rows_fold() -> None:
    assert routed(plugin_of(), Words(sparse=False, fused=True), **CLIPPED) == {FOLDED}


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_half_weights_are_not_divided_by_the_optimizer(precision: str) -> None:
    """It would round them otherwise than we do. Without clipping there is nothing to divide by."""
    clipped, unclipped = (ONE_PASS, LATE) if precision == "bf16-true" else (SEPARATE, SEPARATE)
    assert routed(plugin_of(precision, exact=False), **CLIPPED) == {clipped}
    assert routed(plugin_of(precision, exact=False)) == {unclipped}


class Groups(Regression):
    """Several parameter groups, one of them without gradients."""

    def configure_optimizers(self) -> Any:
        first, _, last = self.net
        self.unused = nn.Parameter(torch.ones(3))
        groups = [{"params": first.parameters()}, {"params": last.parameters(), "lr": 0.02}, {"params": [self.unused]}]
        return self.make_optimizer(groups, **self.optimizer_options)


@pytest.mark.parametrize("exact", [True, False])
def test_several_groups_are_clipped_together(exact: bool) -> None:
    model, seen = train(plugin_of(exact=exact), Groups(fused=True, momentum=0.9), **CLIPPED)
    assert seen[-1] == (FOLDED if exact else LATE)
    oracle = fit(plugin_of(), Groups(fused=True, momentum=0.9), callbacks=[Looking()], **CLIPPED)
    torch.testing.assert_close(weights(model), weights(oracle), rtol=0, atol=1e-6)
    assert model.unused.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("exact", [True, False])
def test_a_group_that_comes_later_has_no_buffers_to_skip_with(exact: bool) -> None:
    """A fused SGD makes momentum buffers in the first step of a parameter, which the device must not skip."""

    class Unfrozen(Regression):
        def configure_optimizers(self) -> Any:
            return SGD(self.net[2].parameters(), lr=0.1, momentum=0.9, fused=True)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 4:
                self.optimizers().add_param_group({"params": [*self.net[0].parameters()]})

    _, seen = train(plugin_of(exact=exact), Unfrozen())
    later = FOLDED if exact else LATE
    assert seen == [FOLDED, later, later, later, FOLDED, later, later, later]


# Other ways to make a step.


class Manual(Regression):
    """Manual optimization: who steps by hand may look by hand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
        optimizer.step()


class ClipsByHand(Regression):
    """Runs the closure, clips and steps in its own hook."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer_closure()
        self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
        optimizer.step()


@pytest.mark.parametrize("model", [Manual, ClipsByHand])
def test_a_step_that_is_made_by_hand(model: type[Regression]) -> None:
    ours, seen = train(plugin_of(exact=False), model(fused=True))
    assert set(seen) == {SEPARATE}
    oracle = fit(plugin_of(), Regression(fused=True), callbacks=[Looking()], **CLIPPED)
    assert_bitwise_equal(weights(ours), weights(oracle))


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}], ids=str)
def test_a_closure_that_was_run_by_hand_steps_on_any_route(options: dict[str, Any]) -> None:
    class Runs(Regression):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer_closure()
            optimizer.step()

    plugin = plugin_of(exact=False)
    model = fit(plugin, Runs(fault=overflowing_at(3), **options), **CLIPPED)
    assert (plugin.effective_step, plugin.skipped_steps) == (7, 1)
    oracle = fit(plugin_of(retries=0), Regression(fault=overflowing_at(3), **options), **CLIPPED)
    assert_bitwise_equal(weights(model), weights(oracle))


# A scale below 1.


@pytest.mark.parametrize("init_scale", [2.0**-10, 1.0])
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}], ids=str)
def test_gradients_that_overflow_as_they_are_divided_are_noticed(options: dict[str, Any], init_scale: float) -> None:
    """Finite as they come from a scale below 1, or of a scale that falls below 1 as their batch is run again."""

    class Huge(Regression):
        def on_after_backward(self) -> None:
            if self.trainer.fit_loop.batch_idx == 2:
                scale: float = self.trainer.precision_plugin.loss_scale
                self.net[0].weight.grad[0, 0] = 3e38 if scale < 1.0 else float("inf")

    plugin = plugin_of(scale=init_scale, min_scale=2.0**-20)
    model = fit(plugin, Huge(**options), **CLIPPED)
    assert (plugin.effective_step, plugin.skipped_steps) == (7, 1)
    assert all(weight.isfinite().all() for weight in weights(model))


def test_a_callback_that_comes_late_is_noticed() -> None:
    class Looking(Callback):
        norms: list[float]

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.norms.append(float(pl_module.net[0].weight.grad.norm()))

    class Inviting(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 4:
                trainer.callbacks.append(looking)

    looking = Looking()
    looking.norms = []
    _, seen = train(plugin_of(exact=False), Regression(fused=True), Inviting())
    assert seen == [LATE] * 4 + [(Route.separate, True)] * 4
    assert all(0 < norm < 10 for norm in looking.norms)
    assert len(looking.norms) == 4


@pytest.mark.parametrize("fused", [True, False])
def test_gradients_whose_squares_are_beyond_fp32_are_clipped(fused: bool) -> None:
    """In fp32 their norm is infinite, and torch would clip them to zero."""

    class Steep(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * 1e22  # type: ignore[operator]

    model, seen = train(plugin_of("fp32"), Steep(fused=fused), **CLIPPED)
    before = weights(Regression())
    moved = [float((ours - first).norm()) for ours, first in zip(weights(model), before, strict=True)]
    assert set(seen) == {(Route.folded, True) if fused else (Route.one_pass, True)}
    assert all(0 < each < 1 for each in moved)
