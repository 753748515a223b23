"""A text as the sum of its words."""

from collections.abc import Mapping

from torch import Tensor, nn


class BagOfWords(nn.Module):
    """Sum of the embeddings over the square root of their number, one hidden layer, logits.

    A mean would be close to zero for long texts, as most words point in random directions.

    Args:
        vocab_size: number of ids; id 0 means "no word" and does not count.
        embedding_dim: numbers per id.
        hidden_dim: units of the hidden layer.
        num_outputs: numbers to predict.
        dropout: share of units dropped in training.
    """

    def __init__(self, vocab_size: int, embedding_dim: int, hidden_dim: int, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocab_size, embedding_dim, mode="sum", padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(embedding_dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, num_outputs),
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """{"input_ids", "attention_mask"} of shape [batch, words], 0 in the mask behind shorter texts, to logits."""
        word_ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 0)
        num_words = (word_ids > 0).sum(dim=1, keepdim=True).clamp(min=1)
        return self.head(self.embedding(word_ids) / num_words.sqrt())
