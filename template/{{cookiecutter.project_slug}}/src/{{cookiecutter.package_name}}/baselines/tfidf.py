"""Linear classification of weighted word counts."""

from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def tfidf_accuracy(
    train_texts: Sequence[str], train_labels: Sequence[int], test_texts: Sequence[str], test_labels: Sequence[int]
) -> float:
    """Test accuracy of TF-IDF weighted words and word pairs with logistic regression, fitted on the training split."""
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000)
    )
    return float(model.fit(train_texts, train_labels).score(test_texts, test_labels))
