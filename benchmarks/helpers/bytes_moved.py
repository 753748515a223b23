"""The bytes that a step moves for every fp32 gradient value, counted from what each part of it reads and writes."""

from dataclasses import dataclass

BYTES = 4
"""Of an fp32 value."""


@dataclass(frozen=True)
class Part:
    """A walk over all gradients."""

    name: str
    reads: int
    """Values read per gradient value."""
    writes: int

    @property
    def bytes(self) -> int:
        """What it moves per gradient value."""
        return BYTES * (self.reads + self.writes)


UNSCALE = Part("unscale and check", 1, 1)
NORM = Part("norm", 1, 0)
CLIP = Part("clip", 1, 1)
STATS = Part("grad_stats", 1, 0)
MULTIPLY = Part("unscale and clip", 1, 1)
FUSED_ADAMW = Part("fused AdamW", 4, 3)
"""It reads gradient, weight and two moments, and writes the last three."""
FUSED_ADAMW_UNSCALES = Part("fused AdamW, which unscales", 4, 4)
"""A fused optimizer that is given a scale also writes the unscaled gradients back."""

ROUTES: dict[str, tuple[Part, ...]] = {
    "stock fp16, clipping": (UNSCALE, NORM, CLIP, FUSED_ADAMW),
    "stock fp16": (UNSCALE, FUSED_ADAMW_UNSCALES),
    "stock bf16, clipping": (NORM, CLIP, FUSED_ADAMW),
    "stock bf16": (FUSED_ADAMW,),
    "folded, with a scale or clipping": (STATS, FUSED_ADAMW_UNSCALES),
    "folded, with neither": (STATS, FUSED_ADAMW),
    "one pass": (STATS, MULTIPLY, FUSED_ADAMW),
    "separate, with clipping": (UNSCALE, NORM, CLIP, FUSED_ADAMW),
}
"""Stock's clipping is counted with a fused optimizer's bytes, though Lightning refuses the two together: any other
optimizer moves more, and on both sides."""
