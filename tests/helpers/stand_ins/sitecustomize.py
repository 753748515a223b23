"""Let torchvision be imported beside a build of torch that it was not compiled for.

For processes that have this folder on their path. PyPI has torchvision for CUDA only. Beside a CPU build of torch its
compiled operators do not load, and its import fails at the first of them that it wants to describe. Here they are
declared, without an implementation, before that: what timm and torchmetrics take from torchvision is written in Python
and calls none of them.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Declare(MetaPathFinder):
    """Finds nothing itself, and is asked first."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "torchvision.extension":
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _Declare())
