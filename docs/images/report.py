"""Make report.png: a small model learns digits in fp16, with two batches spoiled on purpose, and its page is drawn.

PYTHONPATH=. python docs/images/report.py
"""

import base64
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mp_plugin import AdaptivePrecision, Fallback, Telemetry
from mp_plugin.report.page import build_page
from mp_plugin.telemetry.store import open_run
from tests.helpers.browser import browser, looks

HEIGHT = 1735
"""From the verdict down to the heat map."""


class Block(nn.Module):
    """A residual block of a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Add to the input what is made of it."""
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Digits(pl.LightningModule):
    """Classify digits; two batches are far too large for fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64, 64)
        self.blocks = nn.Sequential(*(Block() for _ in range(6)))
        self.head = nn.Linear(64, 10)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        if batch_idx == 17 and self.current_epoch in (2, 5):
            images = images * 3e5
        return nn.functional.cross_entropy(self.head(self.blocks(self.embed(images))).float(), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Train, build the page, and take its picture."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    dataset = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    with TemporaryDirectory() as folder:
        run = Path(folder) / "runs" / "digits-fp16"
        telemetry = Telemetry(every_n_steps=5, activations=True, histograms=True, max_overhead=1, directory=str(run))
        plugin = AdaptivePrecision("16-mixed", fallback=Fallback(auto=True), telemetry=telemetry)
        trainer = pl.Trainer(
            max_epochs=10,
            accelerator="cpu",
            plugins=[plugin],
            logger=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        trainer.fit(Digits(), DataLoader(dataset, batch_size=32, shuffle=True))
        page = Path(folder) / "report.html"
        page.write_text(build_page(open_run(run)), encoding="utf-8")
        with browser() as driver:
            looks(driver, width=1280, theme="light")
            driver.get(page.as_uri())
            driver.set_script_timeout(60)
            driver.execute_async_script(
                "const done = arguments[0]; const look = () => document.querySelector('#exponent-chart .main-svg')"
                " ? setTimeout(done, 500) : setTimeout(look, 100); look();"
            )
            clip = {"x": 0, "y": 0, "width": 1280, "height": HEIGHT, "scale": 1}
            options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
            picture = driver.execute_cdp_cmd("Page.captureScreenshot", options)
    image = Image.open(io.BytesIO(base64.b64decode(picture["data"]))).convert("RGB")
    image.save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
