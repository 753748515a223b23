"""`AdaptivePrecision`, the Lightning plugin: the order of the hooks, and nothing else."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import override

from mp_plugin.autocast import autocast
from mp_plugin.casting import DTYPES, cast_floating, default_dtype
from mp_plugin.checkpoint import adopt_stock, offer_to_stock, pack, unpack
from mp_plugin.config import AtMinScale, Fallback, LossScaling, Telemetry
from mp_plugin.devices import allow_tf32, check_device
from mp_plugin.errors import ConfigError
from mp_plugin.explain import Explainer
from mp_plugin.format_report import FormatReport
from mp_plugin.fsdp import FSDPCapable
from mp_plugin.layer_fallback import LayerFallback
from mp_plugin.layer_sampling import LayerSampler
from mp_plugin.modes import parse_mode
from mp_plugin.run_connections import connect_run
from mp_plugin.run_view import RunView
from mp_plugin.scaling.guard import StepGuard
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.step_plan import StepPlan
from mp_plugin.scaling.unseen_step import foresee
from mp_plugin.step import take_step
from mp_plugin.step_planner import StepPlanner
from mp_plugin.step_start import StepStart
from mp_plugin.strategies import lightning_module, refuse_strategy


class AdaptivePrecision(RunView, FSDPCapable):  # type: ignore[misc]  # the scaler is read-only here
    """Train in a chosen precision and never step with a gradient that is not finite.

    Every optimizer step reads the gradients once. If one of them holds a NaN or an Inf on any rank, the parameters
    concerned are named, and all ranks together either run the batch again at a lower loss scale, in `16-mixed`, or skip
    the step: the weights stay, buffers go back to their last good values, LR schedulers hold, and the skip is counted.
    Gradients are unscaled before `on_before_optimizer_step` and before clipping, for fused optimizers too; both are
    left out of a step that is skipped. Where nobody looks at them in between, one pass does both, or the fused
    optimizer. One host sync per step on an accelerator, none with a fused optimizer; none on the CPU.

    Args:
        precision: `32-true`, `tf32`, `bf16-mixed`, `16-mixed`, `bf16-true` or `16-true`; short `fp32`, `bf16`, `fp16`.
            `16-mixed` on a CPU is real fp16, and slow on most.
        scaling: how the loss of a `16-mixed` run is scaled; None for the defaults there and for no scaling elsewhere.
        fallback: which layers run in FP32, by rule or by proof; None for none beyond autocast's own rules.
        telemetry: how much is found out about an incident, and where it is kept; None for the defaults.
        device: autocast device type; None for the trainer's.
        exact: whether each step's verdict is known before it is taken. False: with a fused optimizer whose gradients
            nobody looks at, the device decides and the host learns of it one step later; an overflowed batch is skipped
            and not run again. None: so, where waiting costs something, after 16 clean steps at one loss scale.

    Raises:
        ConfigError: for an unknown precision, or a loss scale for a precision that needs none.
        UnsupportedError: for a device that is not here or cannot run the precision.

    Example:
        >>> import lightning.pytorch as pl
        >>> plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2**12))
        >>> trainer = pl.Trainer(plugins=[plugin], accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> trainer.precision, plugin.loss_scale
        ('16-mixed', 4096.0)
    """

    def __init__(
        self,
        precision: str | int = "bf16-mixed",
        *,
        scaling: LossScaling | None = None,
        fallback: Fallback | None = None,
        telemetry: Telemetry | None = None,
        device: str | None = None,
        exact: bool | None = None,
    ) -> None:
        self.mode = parse_mode(precision)
        if scaling is not None and not isinstance(scaling, LossScaling):
            raise ConfigError(f"scaling={scaling!r} is not accepted; accepted: a LossScaling, or None.")
        if scaling is not None and not self.mode.scales_loss:
            raise ConfigError(f"precision={self.mode.name!r} has no loss scale to configure; accepted: scaling=None.")
        if fallback is not None and not isinstance(fallback, Fallback):
            raise ConfigError(f"fallback={fallback!r} is not accepted; accepted: a Fallback, or None.")
        if telemetry is not None and not isinstance(telemetry, Telemetry):
            raise ConfigError(f"telemetry={telemetry!r} is not accepted; accepted: a Telemetry, or None.")
        if exact is not None and not isinstance(exact, bool):
            raise ConfigError(f"exact={exact!r} is not accepted; accepted: True, False, or None.")
        if device is not None:
            check_device(self.mode, device)
        # The name that Lightning and other callbacks know; they have none for TF32.
        self.precision = "32-true" if self.mode.name == "tf32" else self.mode.name  # type: ignore[assignment]
        self.device = device
        self.telemetry = telemetry or Telemetry()
        self.guard = StepGuard(LossScaler(scaling) if self.mode.scales_loss else None, dtype=self.mode.compute)
        self.explainer = Explainer(self.guard, self.telemetry, is_mixed=self.mode.is_mixed)
        at_floor = self.scaler is not None and self.scaler.config.at_min_scale is AtMinScale.fallback
        self.fallback = fallback or Fallback()
        self.layer_fallback = LayerFallback(self.fallback, self.mode, self.telemetry, proves_at_floor=at_floor)
        self.sampler = LayerSampler(self.telemetry, self.mode, self.guard)
        self._device_type = device or "cpu"
        self._undo: list[Callable[[], None]] = []
        self._is_fitting = True
        self.exact = exact
        self.start: StepStart | None = None  # during a fit
        self.planner: StepPlanner | None = None  # likewise
        self.formats: FormatReport | None = None  # likewise

    def __repr__(self) -> str:
        """Show what was chosen."""
        scaling = f", scaling={self.scaler.config}" if self.scaler is not None else ""
        return f"{type(self).__name__}({self.mode.name!r}{scaling})"

    # Setting up and taking down.

    @override
    def convert_module(self, module: Module) -> Module:
        if self.device is None and isinstance(module, pl.LightningModule):
            self._device_type = module.trainer.strategy.root_device.type
            check_device(self.mode, self._device_type)
        if self.mode.weights != "fp32":
            strategy = module.trainer.strategy if isinstance(module, pl.LightningModule) else None
            with self.layer_fallback.chosen.converting(module, strategy):
                return module.to(dtype=DTYPES[self.mode.weights])
        return super().convert_module(module)

    @override
    def connect(
        self, model: Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[Module, list[Optimizer], list[Any]]:
        module = lightning_module(model)
        trainer = module.trainer
        refuse_strategy(trainer.strategy)
        self._is_fitting = trainer.state.fn == TrainerFn.FITTING
        if self._is_fitting and trainer.global_step == 0:
            self.guard.start_afresh()
            self.layer_fallback.start_afresh()
            self.census = self.precision_map = None
        if self.mode.compute == "tf32":
            self._undo.append(allow_tf32())
        self._undo.append(self.layer_fallback.connect(model, module, self._device_type))
        connect_run(self, module, optimizers, self._undo, is_fitting=self._is_fitting)
        return super().connect(model, optimizers, lr_schedulers)

    @override
    def teardown(self) -> None:
        while self._undo:
            self._undo.pop()()
        if self.scaler is not None:
            self.scaler.finish()
        self.guard.outstanding = None
        self.guard.forget_losses()
        self.explainer.live = None
        self._is_fitting, self.start, self.planner, self.formats = True, None, None, None
        super().teardown()

    # Forward.

    @override
    def forward_context(self) -> AbstractContextManager[None]:
        if self.mode.is_mixed:
            return autocast(self._device_type, DTYPES[self.mode.compute])
        return self.tensor_init_context()

    @override
    @contextmanager
    def train_step_context(self) -> Generator[None, None, None]:
        if self.start is not None:
            self.start.mark()
        steps = self.effective_step
        sampling = self.sampler.forward(self.start) if self.start is not None else nullcontext()
        with self.forward_context(), self.explainer.watching(), sampling:
            yield
        if self.start is not None and self.start.is_rehearsing:
            return
        # In manual optimization the optimizers stepped in here.
        if self.start is not None and not self.start.module.automatic_optimization:
            self._end_step(taken=self.effective_step > steps)
            self._let_the_scale_move(self.start.module)

    @override
    def tensor_init_context(self) -> AbstractContextManager[None]:
        return nullcontext() if self.mode.weights == "fp32" else default_dtype(DTYPES[self.mode.weights])

    @override
    def module_init_context(self) -> AbstractContextManager[None]:
        return self.tensor_init_context()

    @override
    def convert_input(self, data: Any) -> Any:
        return data if self.mode.weights == "fp32" else cast_floating(data, DTYPES[self.mode.weights])

    # Backward and step.

    @override
    def pre_backward(self, tensor: Tensor, module: "pl.LightningModule") -> Tensor:  # type: ignore[override]
        if self.scaler is not None and not module.automatic_optimization:
            # Several steps within one training step: the scale moves between them, where nobody holds gradients.
            self._let_the_scale_move(module)
        self.guard.saw_loss(tensor)
        if self.scaler is not None:
            tensor = self.scaler.scale(tensor)
        return super().pre_backward(tensor, module)

    @override
    def post_backward(self, tensor: Tensor, module: "pl.LightningModule") -> Tensor:  # type: ignore[override]
        if self.start is None:
            return super().post_backward(tensor, module)
        with self.start.noticing_edits():
            return super().post_backward(tensor, module)

    @override
    def backward(  # type: ignore[override]
        self, tensor: Tensor, model: "pl.LightningModule", optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        optimizers = model.trainer.optimizers
        if self.scaler is not None and model.automatic_optimization:
            # One optimizer, one step per closure; only a user who clips too early can mix its gradients.
            optimizers = [optimizer for optimizer in optimizers if self.scaler.is_unscaled(optimizer)]
        noting = nullcontext() if self.scaler is None else self.scaler.watch(optimizers)
        watching = self.explainer.watching(backward=True)
        with noting, self.layer_fallback.backward_context(), watching, self.sampler.backward():
            super().backward(tensor, model, optimizer, *args, **kwargs)

    @override
    def optimizer_step(  # type: ignore[override]
        self, optimizer: Optimizer, model: "pl.LightningModule", closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        def after_closure(plan: StepPlan) -> None:
            carried_scale = self.loss_scale if plan.is_unattended else 1.0
            if self.layer_fallback.may_act and plan.is_exact:
                step = self.guard.step_index
                self.layer_fallback.sample(model, self.scaler, step=step, carried_scale=carried_scale)
            is_unseen = not plan.is_exact
            self.sampler.look(self.start, optimizer, carried_scale=carried_scale, is_unseen=is_unseen)
            if not plan.is_unattended:
                self._after_closure(model, optimizer)

        steps = self.effective_step
        helpers = (self.guard, self.explainer, self.layer_fallback, self.start)
        output = take_step(*helpers, self.planner, optimizer, model, closure, after_closure, **kwargs)
        self.explainer.stepped()
        if model.automatic_optimization:
            self._end_step(taken=self.effective_step > steps)
            if self.scaler is not None:
                self.scaler.update()
            self.guard.forget_losses()
        return output

    def _end_step(self, *, taken: bool) -> None:
        self.layer_fallback.step_over(step=self.guard.record.steps, taken=taken)
        self.sampler.step_over(self.start)
        if self.formats is not None:
            self.formats.look()
        if self.start is not None:
            self.start.done()

    def _let_the_scale_move(self, module: "pl.LightningModule") -> None:
        if self.scaler is None or self.scaler.update_unless_waiting(module.trainer.optimizers):
            self.guard.forget_losses()

    @override
    def clip_gradients(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if self.scaler is not None:
            # In manual optimization a user clips before the step that would unscale.
            self.scaler.verdict(optimizer)
        super().clip_gradients(optimizer, *args, **kwargs)

    # Checkpoints.

    @override
    def state_dict(self) -> dict[str, Any]:
        record, scaler_state = foresee(self.guard)
        return pack(self.mode.name, scaler_state, record, self.layer_fallback.state, self.precision_map)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning hands over the state for test, validate and predict too, where it would overwrite the run's own.
        saved = unpack(state_dict, self.scaler if self._is_fitting else None)
        self.layer_fallback.load(saved.fallback, for_good=self._is_fitting)
        if self._is_fitting:
            self.guard.outstanding = None
            self.guard.record, self.precision_map = saved.record, saved.precision_map

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        offer_to_stock(checkpoint, self.scaler)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._is_fitting and type(self).__qualname__ not in checkpoint:
            adopt_stock(checkpoint, self.scaler)
