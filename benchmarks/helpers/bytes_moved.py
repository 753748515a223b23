"""The bytes that a step moves for every fp32 gradient value besides the optimizer's own, counted by reads and writes.

tests/integration/test_healthy_step_cost.py counts the same walks where torch dispatches them.
"""

from dataclasses import dataclass

BYTES = 4
"""Of an fp32 value."""
FUSED_ADAMW = 28
"""What fused AdamW moves by itself: it reads gradient, weight and two moments, and writes the last three."""


@dataclass(frozen=True)
class Part:
    """A walk over all gradients, or what the optimizer's own walk does besides."""

    name: str
    reads: int
    """Values read per gradient value."""
    writes: int

    @property
    def bytes(self) -> int:
        """What it moves per gradient value."""
        return BYTES * (self.reads + self.writes)


UNSCALE = Part("unscale", 1, 1)
NORM = Part("norm", 1, 0)
CLIP = Part("clip", 1, 1)
READ = Part("read", 1, 0)
BOTH = Part("unscale and clip", 1, 1)
WRITE_BACK = Part("written back", 0, 1)
"""A fused optimizer that is given a number to divide by writes the divided gradients back."""

Parts = tuple[Part, ...]


@dataclass(frozen=True)
class Setting:
    """What stock and ours do to the gradients in one setting."""

    precision: str
    clips: bool
    optimizer: str
    stock: Parts | None
    """None where stock Lightning refuses."""
    ours: Parts
    route: str


SETTINGS = (
    Setting("fp16", True, "fused", None, (READ, WRITE_BACK), "folded"),
    Setting("fp16", True, "foreach", (UNSCALE, NORM, CLIP), (READ, BOTH), "one pass"),
    Setting("fp16", False, "fused", (UNSCALE, WRITE_BACK), (READ, WRITE_BACK), "folded"),
    Setting("fp16", False, "foreach", (UNSCALE,), (UNSCALE,), "separate"),
    Setting("bf16", True, "fused", None, (READ, WRITE_BACK), "folded"),
    Setting("bf16", True, "foreach", (NORM, CLIP), (READ, CLIP), "one pass"),
    Setting("bf16", False, "fused", (), (READ,), "folded"),
    Setting("bf16", False, "foreach", (), (READ,), "separate"),
)
"""With gradients that need clipping, where there is clipping."""


def total(parts: Parts) -> int:
    """Return the bytes of several parts together."""
    return sum(part.bytes for part in parts)
