"""Texts as bags of words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

from polytask.errors import one_of, whole

WEIGHTS = ("tfidf", "presence", "counts")


@final
class BagOfWords:
    """Texts to rows of word weights, sparse and of a fixed width; scikit-learn's vectorisers do the work.

    A word is a run of two or more letters and digits, in lower case. The words that are kept are those of the texts
    that `fit` was given, so fit it on the training split alone. A network's input width must be known before any text
    is read: the width is always `max_features`, and columns for which there is no word hold nothing.

    Args:
        max_features: the width V: only the most frequent words are kept, at least 1.
        min_df: only words that stand in at least so many of the texts are kept, at least 1.
        weights: ``tfidf`` (rows of length 1), ``presence`` (0 or 1) or ``counts``.

    Attributes:
        words: those kept, in the order of the columns; empty before `fit`.

    Raises:
        ValueError: an argument is out of its range.

    >>> bag = BagOfWords(max_features=4, weights="counts").fit(["a fine film", "a film with a fine, fine ending"])
    >>> bag.words
    ('ending', 'film', 'fine', 'with')
    >>> bag.transform(["fine, fine!"]).toarray().tolist()
    [[0.0, 0.0, 2.0, 0.0]]
    """

    def __init__(self, max_features: int = 5000, min_df: int = 1, weights: str = "tfidf") -> None:
        whole("max_features", max_features, 1)
        whole("min_df", min_df, 1)
        one_of("weights", weights, WEIGHTS)
        self.max_features = max_features
        self.min_df = min_df
        self.weights = weights
        self.words: tuple[str, ...] = ()
        self._vectoriser: Any = None

    def fit(self, texts: Iterable[str], where: str = "texts") -> BagOfWords:
        """Chooses the words, and for ``tfidf`` counts in how many texts each stands.

        Args:
            texts: the training texts.
            where: whose they are, for messages.

        Returns:
            Itself.

        Raises:
            ValueError: no word is left.
        """
        texts = list(texts)
        vectoriser = self._new()
        try:
            vectoriser.fit(texts)
        except ValueError as error:  # scikit-learn's words for it differ with the reason
            raise ValueError(
                f"{where}: a vocabulary must hold at least one word, found none that stands in `min_df` = "
                f"{self.min_df} of {len(texts)} texts ({error})"
            ) from error
        self._vectoriser = vectoriser
        self.words = tuple(vectoriser.get_feature_names_out())
        return self

    def _new(self) -> Any:
        import numpy as np
        from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

        settings: dict[str, Any] = {"max_features": self.max_features, "min_df": self.min_df, "dtype": np.float32}
        if self.weights == "tfidf":
            return TfidfVectorizer(**settings)
        return CountVectorizer(**settings, binary=self.weights == "presence")

    def transform(self, texts: Iterable[str]) -> Any:
        """Texts to a SciPy CSR matrix (N, `max_features`), float32; words that are not kept count for nothing.

        Raises:
            ValueError: `fit` was not called.
        """
        if self._vectoriser is None:
            raise ValueError("a bag of words must be fitted before it transforms texts, found it unfitted")
        matrix = self._vectoriser.transform(list(texts)).tocsr()
        matrix.resize(matrix.shape[0], self.max_features)
        return matrix
