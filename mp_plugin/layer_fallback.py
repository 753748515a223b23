"""Which layers of a run are in FP32: by rule and by map from the start, by proof as it goes on."""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch.nn import Module

from mp_plugin.all_ranks import AllRanks
from mp_plugin.autocast import compile_backward_without_autocast
from mp_plugin.casting import DTYPES
from mp_plugin.chosen_layers import ChosenLayers, check_together
from mp_plugin.config import Fallback, Telemetry
from mp_plugin.fallback.islands import Islands
from mp_plugin.fallback.isolate import Isolation
from mp_plugin.fallback.layers import layers_by_name
from mp_plugin.fallback.policy import FallbackState, after_proof, after_step, is_within
from mp_plugin.fallback.sharding import refuse_mixed_units, refuse_sharded_half
from mp_plugin.fallback.share import refusal, share_of
from mp_plugin.finding import is_step_finite
from mp_plugin.modes import Mode
from mp_plugin.proof import in_words, prove, prove_swallowed
from mp_plugin.proof_scale import scale_to_prove_at
from mp_plugin.scale_sampling import ScaleSampler
from mp_plugin.scaling.guard import Explanation, StepGuard
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.window import ScaleWindow
from mp_plugin.step_start import StepStart
from mp_plugin.telemetry.events import Cause

log = logging.getLogger(__name__)


class LayerFallback:
    """Keep the layers of a run in FP32 that belong there, and no others.

    The set changes between two steps only, on all ranks alike.

    Args:
        config: rules, and what may be decided on the way.
        mode: the precision of all other layers.
        telemetry: how often gradients are sampled; what is not traced cannot be proved.
        proves_at_floor: whether layers may also be moved once the loss scale cannot go lower.
    """

    def __init__(self, config: Fallback, mode: Mode, telemetry: Telemetry, *, proves_at_floor: bool = False) -> None:
        check_together(config, mode, telemetry)
        self.config = config
        self.may_act = mode.is_mixed and (config.auto or proves_at_floor)
        """Whether an incident may move layers to FP32."""
        self.state = FallbackState()
        self.sampler = ScaleSampler(
            every_n_steps=telemetry.every_n_steps, underflow_tolerance=config.underflow_tolerance
        )
        self.report: Callable[[dict[str, Any]], None] = _ignore
        """Tells the world of a layer that was given back."""
        self.names: tuple[str, ...] = ()
        """Qualified names of the layers in FP32, in the order of the model; after a run those of its end."""
        self._mode = mode
        self.chosen = ChosenLayers(config, mode)
        self._islands: Islands | None = None
        self._device_type = ""
        self._undo: Callable[[], None] = _do_nothing
        self._in_vain: Counter[tuple[Any, ...]] = Counter()
        """Incidents of each origin in a row that no layer has cured; not all of them were tried."""

    # Setting up and taking down.

    def start_afresh(self) -> None:
        """Forget what was proved in another fit."""
        self.state = FallbackState()
        self._in_vain.clear()
        self.sampler.start_afresh()

    def connect(self, model: Module, module: "pl.LightningModule", device_type: str) -> Callable[[], None]:
        """Move the layers that belong there to FP32; returns what undoes it.

        Args:
            model: what the strategy trains, with its wrappers.
            module: the user's own.
            device_type: of the autocast region.
        """
        self.names = ()
        if self._mode.weights == "fp32":
            self.chosen.find(module)
        if self._mode.compute in ("fp32", "tf32"):
            return _do_nothing
        if self._mode.weights != "fp32":
            refuse_mixed_units(module)
        elif self.chosen.reasons or self.may_act:
            refuse_sharded_half(model, module, None if self.may_act else self.chosen.reasons)
        output_dtype = None if self._mode.is_mixed else DTYPES[self._mode.weights]
        self._islands = Islands(module, device_type=device_type, output_dtype=output_dtype)
        self._device_type = device_type
        if not self._is_of(module, self.state):
            self.start_afresh()
        if self.config.auto and not module.automatic_optimization and module.trainer.is_global_zero:
            log.warning("Fallback(auto=True) can prove nothing in manual optimization; Fallback(layers=[...]) works.")
        self.settle()
        return self._disconnect

    def lifted(self) -> AbstractContextManager[None]:
        """Let no layer be an island while the block runs: what is wholly in FP32 needs none."""
        return nullcontext() if self._islands is None else self._islands.tried(())

    def _is_of(self, module: Module, state: FallbackState) -> bool:
        """Whether a state is of this model, or of another one with the same layers in FP32; warns if not."""
        assert self._islands is not None, "only called while connected"
        known = layers_by_name(module)
        accepts = self._islands.accepts
        if others := [name for name in state.demoted if name not in known or not accepts(name, known[name])]:
            log.warning("%s ran in FP32 by proof, in another model than this one: forgotten.", ", ".join(others))
        return not others

    def _disconnect(self) -> None:
        if self._islands is not None:
            self._islands.set(())
            self._islands = None
        self._undo()
        self._undo = _do_nothing

    def backward_context(self) -> AbstractContextManager[Any]:
        """Return the context of a backward pass: of layers in FP32 it must not be cast either.

        Only in manual optimization is it called from within the autocast region.
        """
        is_cast = bool(self.names) and torch.is_autocast_enabled(self._device_type)
        return torch.autocast(self._device_type, enabled=False) if is_cast else nullcontext()

    @property
    def reasons(self) -> dict[str, tuple[str, int]]:
        """Why each of these layers is in FP32, and since which optimizer step."""
        proved = {name: (each.why, each.since_step) for name, each in self.state.demoted.items()}
        every = {**proved, **{name: (why, 0) for name, why in self.chosen.reasons.items()}}
        return {name: every[name] for name in self.names if name in every}

    def settle(self) -> None:
        """Run exactly those layers in FP32 that were chosen or stay there by proof."""
        if self._islands is not None:
            self._exchange({*self.chosen.reasons, *self.state.demoted})

    def _exchange(self, names: set[str]) -> None:
        assert self._islands is not None, "only called while connected"
        if names != set(self._islands.names):
            self._islands.set(names)
        self.names = self._islands.names
        # Not before: of a model without islands, compiled code has to be what it is without a fallback.
        if self.names and self._mode.is_mixed and self._undo is _do_nothing:
            self._undo = compile_backward_without_autocast()

    # On the way.

    def find_cure(
        self, start: StepStart | None, explanation: Explanation, guard: StepGuard, all_ranks: AllRanks
    ) -> Explanation | None:
        """Prove which layers cure an incident in FP32, and move them there for the batch at hand; all ranks together.

        Args:
            start: where the step began, which may be run again.
            explanation: of the incident; its evidence is added to.
            guard: knows the loss scale and the steps so far.
            all_ranks: which try everything together.

        Returns:
            The explanation with its culprits; None if no layer may or can cure it.
        """
        islands = self._islands
        if islands is None or start is None:
            return None
        found = None
        if self.config.auto and explanation["cause"] is Cause.backward:
            found = prove_swallowed(start, explanation, islands, guard.loss_scale, all_ranks)
        if found is None:
            found = self._search(start, islands, explanation, guard, all_ranks)
        if found is None or not found.layers:
            return None
        proof = explanation["evidence"]["proof"]
        demoted = {*self.state.demoted, *found.layers}
        if not self._may_move(start.module, demoted):
            proof["refused"] = refusal(found.layers, share_of(start.module, demoted), self.config.max_fraction)
            return None
        self._in_vain.pop(_origin(explanation), None)
        why = f"proved: {in_words(explanation)}"
        self.state, stays = after_proof(self.state, found.layers, why=why, step=guard.record.steps, config=self.config)
        proof["stays"] = stays
        self._exchange({*islands.names, *found.layers})
        return {**explanation, "culprits": found.layers}

    def _search(
        self, start: StepStart, islands: Islands, explanation: Explanation, guard: StepGuard, all_ranks: AllRanks
    ) -> Isolation | None:
        """Prove which layers make the step finite in FP32, if any may."""

        def is_finite_at(scale: float) -> bool | None:
            return all_ranks.everywhere(lambda: is_step_finite(start, scale), explanation["evidence"])

        def look() -> ScaleWindow | None:
            return self.sampler.look(start, guard.scaler, all_ranks, explanation["evidence"], fp32_layers=islands.names)

        scale = scale_to_prove_at(explanation, guard, look, is_finite_at, is_auto=self.config.auto)
        if scale is None:
            return None
        origin = _origin(explanation)
        self._in_vain[origin] += 1
        # Another batch may well have a cure, but a search is long: of many the 1st, 2nd, 4th, ... are tried.
        if self._in_vain[origin].bit_count() != 1:
            return None

        def is_small(name: str) -> bool:
            return self._may_move(start.module, {*self.state.demoted, name})

        found = prove(start, explanation, islands, scale, all_ranks, is_small=is_small)
        if found is None:  # which took one run
            self._in_vain[origin] -= 1
        return found

    def _may_move(self, module: Module, names: set[str]) -> bool:
        return is_within(share_of(module, names), members=len(names), max_fraction=self.config.max_fraction)

    def sample(
        self, module: "pl.LightningModule", scaler: LossScaler | None, *, step: int, carried_scale: float
    ) -> None:
        """Look at finite gradients, divided by the scale they carry, before they are clipped, if it is time to."""
        self.sampler.sample(module, scaler, step=step, fp32_layers=self.names, carried_scale=carried_scale)

    def step_over(self, *, step: int, taken: bool) -> None:
        """Note that an optimizer step was taken or skipped: layers in FP32 for its batch alone go back now.

        Args:
            step: optimizer steps tried, this one included.
            taken: whether it changed the weights.
        """
        if taken:
            clean_steps = {name: each.clean_steps + 1 for name, each in self.state.demoted.items()}
            self.state, given_back = after_step(self.state, self.config)
            if given_back:
                evidence = {name: {"clean_steps": clean_steps[name]} for name in given_back}
                self.report({"event": "given back", "step": step, "layers": list(given_back), "evidence": evidence})
        self.settle()

    # Checkpoints.

    def load(self, state: FallbackState, *, for_good: bool = True) -> None:
        """Take over what was proved before a checkpoint was written.

        Args:
            state: of the run that wrote it.
            for_good: whether that run goes on; else its layers are in FP32 until this one is taken down.
        """
        if state.demoted and not (self.config.auto or self.may_act):
            names = ", ".join(state.demoted)
            log.warning("The checkpoint's run had %s in FP32 by proof; Fallback(auto=True) would keep that.", names)
        elif self._islands is not None and not self._is_of(self._islands.root, state):
            return
        elif for_good:
            self.state = state
            self.settle()
        elif self._islands is not None:
            self._exchange({*self.chosen.reasons, *state.demoted})


def _origin(explanation: Explanation) -> tuple[Any, ...]:
    return tuple(explanation.get(name) for name in ("operator", "location", "direction", "layer"))


def _ignore(_: dict[str, Any]) -> None:
    pass


def _do_nothing() -> None:
    pass
