"""Classification, whatever the examples are."""

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from {{cookiecutter.package_name}}.checks import require_fraction
from {{cookiecutter.package_name}}.tasks.base import Task


class Classifier(Task):
    """Cross-entropy training and accuracy.

    Args:
        net: a batch of inputs to logits of shape [batch, num_classes].
        num_classes: number of classes.
        lr: highest learning rate.
        weight_decay: of the weight matrices.
        warmup_fraction: share of the steps in which the learning rate rises.
        label_smoothing: share of the target that is spread over all classes in training.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        lr: float,
        weight_decay: float,
        warmup_fraction: float,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay, warmup_fraction)
        require_fraction(label_smoothing=label_smoothing)
        self.net, self.label_smoothing = net, label_smoothing
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of shape [batch, num_classes]."""
        return self.net(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch."""
        inputs, labels = batch
        loss = F.cross_entropy(self(inputs), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy on the validation split."""
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Loss and accuracy on the test split; returns the columns of the prediction file."""
        return columns(self._evaluate(batch, "test", self.test_acc), batch[1])

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, accuracy: MulticlassAccuracy) -> Tensor:
        inputs, labels = batch
        logits = self(inputs)
        accuracy.update(logits, labels)
        self.log(f"{stage}/loss", F.cross_entropy(logits, labels), batch_size=len(labels), sync_dist=True)
        self.log(f"{stage}/acc", accuracy, prog_bar=True, batch_size=len(labels))
        return logits

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Columns of the prediction file: label, prediction and its probability."""
        inputs, labels = batch
        return columns(self(inputs), labels)


def columns(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Labels, the likeliest class of each example, and its probability."""
    confidence, prediction = logits.float().softmax(dim=-1).max(dim=-1)
    return {"label": labels, "prediction": prediction, "confidence": confidence}
