"""Bags of words."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from polytask.data import BagOfWords

TEXTS = ["The cat saw the dog.", "the DOG sleeps", "a cat, a cat: sleeps!"]


def test_words_are_counted_in_the_order_of_the_columns():
    bag = BagOfWords(8, weights="counts").fit(TEXTS)
    assert bag.words == ("cat", "dog", "saw", "sleeps", "the")
    wanted = [[1, 1, 1, 0, 2, 0, 0, 0], [0, 1, 0, 1, 1, 0, 0, 0], [2, 0, 0, 1, 0, 0, 0, 0]]
    found = bag.transform(TEXTS)
    assert scipy.sparse.issparse(found) and found.format == "csr" and found.dtype == np.float32
    assert found.toarray().tolist() == wanted
    presence = BagOfWords(8, weights="presence").fit(TEXTS).transform(TEXTS).toarray()
    assert presence.tolist() == np.minimum(wanted, 1).tolist()


def test_tfidf_is_the_count_times_the_smoothed_log_of_rarity_in_rows_of_length_one():
    counts = BagOfWords(5, weights="counts").fit(TEXTS).transform(TEXTS).toarray()
    texts_with = (counts > 0).sum(0)
    weighted = counts * (np.log((1 + 3) / (1 + texts_with)) + 1)
    found = BagOfWords(5).fit(TEXTS).transform(TEXTS).toarray()
    np.testing.assert_allclose(found, weighted / np.linalg.norm(weighted, axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 5, 40])
def test_the_width_is_always_max_features(width: int):
    bag = BagOfWords(width, weights="counts").fit(TEXTS)
    assert bag.transform(TEXTS).shape == (3, width)
    assert bag.transform(["quite other words", ""]).nnz == 0
    assert len(bag.words) == min(width, 5)
    if width == 2:
        assert bag.words == ("cat", "the")  # the most frequent


def test_rare_words_are_left_out():
    assert BagOfWords(9, min_df=2).fit(TEXTS).words == ("cat", "dog", "sleeps", "the")


@pytest.mark.parametrize("weights", ["tfidf", "counts"])
@pytest.mark.parametrize("texts", [TEXTS, ["a", "?!"], [], ["", ""]])
def test_an_empty_vocabulary_is_refused(texts: list[str], weights: str):
    with pytest.raises(ValueError) as caught:
        BagOfWords(9, min_df=4, weights=weights).fit(texts, "reviews")
    wanted = (
        f"reviews: a vocabulary must hold at least one word, found none that stands in `min_df` = 4 of {len(texts)}"
    )
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_features": 0}, ValueError, "`max_features` must be at least 1, found 0"),
        ({"min_df": 0}, ValueError, "`min_df` must be at least 1, found 0"),
        ({"min_df": 0.5}, TypeError, "`min_df` must be a whole number, found 0.5"),
        ({"weights": "count"}, ValueError, "`weights` must be one of 'tfidf', 'presence', 'counts', found 'count'"),
    ],
)
def test_arguments(options: dict, kind: type, message: str):
    with pytest.raises(kind, match=message):
        BagOfWords(**options)


def test_it_must_be_fitted_first():
    with pytest.raises(ValueError, match="a bag of words must be fitted before it transforms texts, found it unfitted"):
        BagOfWords().transform(TEXTS)
