"""Faults in a text network: hand-written attention with -inf masks, in blocks of a list in a dictionary."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.helpers.faults.batches import CLASSES, PADDING, SPOILED_SAMPLE, TOKENS, Batch
from tests.helpers.faults.fault import Fault, one, overflow, turn
from tests.helpers.faults.image import MATMULS
from tests.helpers.faults.training import Block, Planted, constant, run

WIDTH, HEADS = 16, 2
LAYER = "net.layers.encoder.1"
"""Where the planted block is."""
BATCHED_MATMULS = ("bmm.default", "baddbmm.default", "matmul.default")


class TextNet(nn.Module):
    """Three transformer blocks; the middle one may be planted."""

    def __init__(self, planted: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(TOKENS, WIDTH)
        blocks = [TextBlock(), planted or TextBlock(), TextBlock()]
        self.layers = nn.ModuleDict({"encoder": nn.ModuleList(blocks)})
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor, knob: Tensor) -> Tensor:
        is_word = tokens != PADDING
        x = self.embed(tokens)
        for block in self.layers["encoder"]:
            x = run(block, x, is_word, knob)
        return self.head(self.norm(x).mean(dim=1))  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.query_key_value(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        return self.out((weights @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, is_word: Tensor, knob: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        logits = logits.masked_fill(~is_word[:, None, None, :], -math.inf)
        return self.mix(logits.softmax(dim=-1), v)  # culprit: masked-softmax


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))  # type: ignore[no-any-return]


class TextBlock(Block):
    def __init__(
        self, attention: nn.Module | None = None, mlp: nn.Module | None = None, norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), norm or nn.LayerNorm(WIDTH)
        self.attention, self.mlp = attention or Attention(), mlp or Mlp()

    def forward(self, x: Tensor, is_word: Tensor, knob: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x), is_word, knob)
        norm = self.norm_2(x, knob) if isinstance(self.norm_2, Norm) else self.norm_2(x)
        return x + self.mlp(norm, knob)  # type: ignore[no-any-return]


class Logits(Attention):
    def forward(self, x: Tensor, is_word: Tensor, knob: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        knob = knob.to(q.dtype)[:, None, None, None]
        q, k = q * knob, k * knob
        logits = q @ k.transpose(-1, -2)  # culprit: logits
        logits = logits.masked_fill(~is_word[:, None, None, :], -math.inf)
        return self.mix(logits.softmax(dim=-1), v)


class LogMask(Attention):
    """Masks by adding the logarithm of 0 and of 1, in every batch: an -inf that is meant."""

    def forward(self, x: Tensor, is_word: Tensor, knob: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        logits = logits + is_word[:, None, None, :].to(q.dtype).log()
        return self.mix(logits.softmax(dim=-1), v)


class LargeMlp(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.down = constant(nn.Linear(2 * WIDTH, WIDTH), 0.5)

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = torch.sigmoid(self.up(x))
        x = x * knob.to(x.dtype)[:, None, None]
        return self.down(x)  # culprit: after-a-mask


class Norm(nn.Module):
    """A norm without an epsilon."""

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = x * knob.to(x.dtype)[:, None, None]
        x = x - x.mean(dim=-1, keepdim=True)
        return x / x.std(dim=-1, keepdim=True)  # culprit: std-norm


class RootMeanSquare(Norm):
    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = (x * knob[:, None, None]).to(torch.float16)
        square = x.pow(2)  # culprit: square
        return square.mean(dim=-1, keepdim=True).add(1e-4).sqrt().expand_as(x)


def _block(
    attention: type[Attention] | None = None, mlp: type[Mlp] | None = None, norm: type[Norm] | None = None
) -> Callable[[], Planted]:
    def make() -> Planted:
        torch.manual_seed(4)
        parts = {"attention": attention, "mlp": mlp, "norm": norm}
        return Planted(TextNet(TextBlock(**{name: part() for name, part in parts.items() if part is not None})))

    return make


def _only_padding(batch: Batch) -> Batch:
    tokens = batch.inputs.clone()
    tokens[SPOILED_SAMPLE] = PADDING
    return batch._replace(inputs=tokens)


FAULTS = (
    Fault(
        name="masked-softmax",
        inputs="tokens",
        make=_block(),
        spoil=_only_padding,
        accepted=one(
            *("_softmax.default", "softmax.int", "_safe_softmax.default"),
            layer="net.layers.encoder.0.attention",
            kind="nan",
            marker="masked-softmax",
            reason="inf|mask",
            dtype="fp16",
        ),
    ),
    Fault(
        name="attention-logits",
        inputs="tokens",
        make=_block(attention=Logits),
        spoil=turn(2e3),
        accepted=overflow(*BATCHED_MATMULS, layer=f"{LAYER}.attention", marker="logits"),
    ),
    Fault(
        name="after-a-log-mask",
        inputs="tokens",
        make=_block(attention=LogMask, mlp=LargeMlp),
        spoil=turn(3e4),
        accepted=overflow(*MATMULS, layer=f"{LAYER}.mlp.down", marker="after-a-mask"),
    ),
    Fault(
        name="std-norm",
        inputs="tokens",
        make=_block(norm=Norm),
        spoil=turn(0),
        precision="bf16",
        accepted=one("div.Tensor", layer=f"{LAYER}.norm_2", kind="nan", marker="std-norm", reason="0/0|zero"),
    ),
    Fault(
        name="square",
        inputs="tokens",
        make=_block(norm=RootMeanSquare),
        spoil=turn(1e3),
        accepted=overflow(
            *("pow.Tensor_Scalar", "square.default"),
            layer=f"{LAYER}.norm_2",
            marker="square",
        ),
    ),
)
