import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from mp_plugin.telemetry.advice import advice
from mp_plugin.telemetry.events import Action, Cause, Direction, Incident
from mp_plugin.telemetry.panel import incident_panel
from tests.unit.telemetry.test_events import incident


def traced(**changes: Any) -> Incident:
    fields = {
        "step": 48213,
        "batch_idx": 17,
        "action": Action.skip,
        "cause": Cause.forward,
        "direction": Direction.forward,
        "layer": "encoder.layers.3.self_attn.out_proj",
        "operator": "aten.addmm.default",
        "location": "src/models/transformer.py:118 in forward",
        "amax_in": 512.0,
        "amax_out": float("inf"),
        "reason": "overflow: 131,072 is beyond the largest fp16 number, 65,504",
        "traced": True,
        "evidence": {"forward_finite_in_fp32": True},
    }
    return incident(**{**fields, **changes})


def rendered(of: Incident, width: int = 100) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(incident_panel(of))
    return console.export_text().splitlines()


def content(of: Incident, width: int = 100) -> list[str]:
    return [line.strip("│ ") for line in rendered(of, width)[1:-1]]


def test_says_what_where_why_what_was_done_and_what_to_do() -> None:
    assert rendered(traced())[0].startswith("╭─ Incident at step 48,213, batch 17: forward ─")
    assert content(traced(), width=140) == [
        "what   aten.addmm.default made inf in fp16 (largest input 512)",
        "where  forward pass of encoder.layers.3.self_attn.out_proj",
        "src/models/transformer.py:118 in forward",
        "why    overflow: 131,072 is beyond the largest fp16 number, 65,504",
        "the same batch is finite in fp32",
        "done   step skipped",
        "to do  Fallback(auto=True) runs in fp32 what has to be, Fallback(layers=[...]) the layers that you",
        "name. Or use bf16, which has the range of fp32.",
    ]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_cut_or_too_long(width: int) -> None:
    lines = rendered(traced(), width)
    assert max(map(cell_len, lines)) <= min(width, 108)
    words = " ".join(content(traced(), width)).split()
    for piece in (traced().layer, traced().operator, "src/models/transformer.py:118", *advice(traced()).split()):
        assert piece in words


def test_a_long_name_is_folded_and_not_lost() -> None:
    layer = "x" * 150
    assert layer in "".join(line.split()[-1] for line in content(traced(layer=layer), 60))


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", ":smile:", "a[0]"])
def test_names_are_text_and_not_markup(name: str) -> None:
    changes = {"layer": name, "location": f"{name}.py:1 in f", "reason": f"overflow in {name}"}
    text = "\n".join(content(traced(**changes)))
    assert text.count(name) == 3
    proved = traced(action=Action.fallback, culprits=(name,))
    assert "\n".join(content(proved)).count(name) == 2  # what was done, and the advice
    assert name in "\n".join(content(incident(parameters=(name,))))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"amax_in": None}, "what   aten.addmm.default made inf in fp16"),
        ({"cause": Cause.data, "kind": "nan"}, "what   aten.addmm.default was the first to meet nan"),
        ({"cause": Cause.weights, "kind": "nan"}, "what   aten.addmm.default was the first to meet nan"),
        ({"operator": None}, "what   inf gradients in a, b, c and 1 more"),
        ({"operator": None, "parameters": ("a",)}, "what   inf gradients in a"),
        ({"operator": None}, "where  not traced"),
        ({"operator": None, "rank": 1}, "where  not traced on rank 1"),
        ({"rank": 1, "layer": "head"}, "where  forward pass of head on rank 1"),
        ({"layer": "", "direction": Direction.backward}, "where  backward pass"),
        ({"direction": None}, "where  src/models/transformer.py:118 in forward"),
        ({"reason": None}, "why    the forward pass made it from finite numbers"),
        ({"reason": None, "cause": Cause.unknown}, "why    not found out"),
        ({"evidence": {"backward_finite_at_lower_scale": True}}, "the same batch is finite at the lowest loss scale"),
        (
            {"evidence": {"swallowed": {"operator": "aten.exp.default", "layer": "norm", "location": "m.py:1 in f"}}},
            "before it aten.exp.default made inf in norm, m.py:1 in f, which the loss does not show",
        ),
        (
            {"evidence": {"swallowed": {"operator": "aten.exp.default", "layer": "", "location": None}}},
            "before it aten.exp.default made inf in the forward pass, which the loss does not show",
        ),
        ({"action": Action.backoff}, "done   step skipped, loss scale lowered from 1,024"),
        ({"action": Action.retry}, "done   loss scale lowered from 1,024, batch run again, still not finite"),
        (
            {"action": Action.retry, "cured": True},
            "done   loss scale lowered from 1,024, batch run again, finite this time",
        ),
        (
            {"action": Action.fallback, "culprits": ("a", "b"), "cured": True, "evidence": {"proof": {"stays": True}}},
            "done   a, b in fp32 from now on, batch run again, finite this time",
        ),
        (
            {"action": Action.fallback, "culprits": ("a",), "evidence": {"proof": {"stays": False}}},
            "done   a in fp32 for this batch, batch run again, still not finite",
        ),
        ({"action": Action.zeroed}, "done   gradients of the second closure call of the step zeroed"),
        ({"action": Action.raise_}, "done   run stopped"),
    ],
    ids=str,
)
def test_what_is_known_is_said_in_words(changes: dict[str, Any], line: str) -> None:
    assert line in content(traced(**changes))


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("action", Action)
def test_every_incident_has_a_panel(cause: Cause, action: Action) -> None:
    for of in (traced(cause=cause, action=action), incident(cause=cause, action=action)):
        labels = [line.split("  ")[0] for line in content(of)]
        assert [label for label in labels if label in ("what", "where", "why", "done", "to do")] == [
            "what",
            "where",
            "why",
            "done",
            "to do",
        ]


def test_a_stopped_run_is_red() -> None:
    assert incident_panel(traced(action=Action.raise_)).border_style == "red"
    assert incident_panel(traced()).border_style == "yellow"
