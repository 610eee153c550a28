"""Sentiment of film reviews and of tweets to airlines: two data sets, two tasks."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from polytask.data.base import DataSet, Split, Splits, data_folder, file_content, locate
from polytask.data.compositing import check_seed
from polytask.data.text import BagOfWords
from polytask.errors import nearest, whole
from polytask.task import binary, classification

REVIEW_FILES = ("rt-polarity.neg", "rt-polarity.pos")
TWEET_FILE = "airline_tweets.csv"
REVIEW_CLASSES = ("negative", "positive")
TWEET_CLASSES = ("negative", "neutral", "positive")
COLUMNS = ("text", "sentiment")
"""Of the tweets' file."""
PER_CLASS = 10
"""Texts that every class must have for each split to get some."""

_FOLDER = "text"
_SOURCES = ("reviews", "tweets")
_PARTS = ("train", "validation", "test")


class Corpus(NamedTuple):
    """Texts and their classes."""

    texts: list[str]
    labels: list[int]

    def rows(self, rows: Iterable[int]) -> Corpus:
        """The texts of these numbers."""
        rows = list(rows)
        return Corpus([self.texts[row] for row in rows], [self.labels[row] for row in rows])


class Sentiment(DataSet):
    """Film reviews and tweets to airlines as bags of words: is the writer pleased?

    Two corpora, each a source with a task of its own name. ``reviews``: 10,662 sentences of film reviews, negative
    or positive (Pang and Lee, *Seeing stars*, `ACL 2005 <https://aclanthology.org/P05-1015/>`_). ``tweets``: 14,640
    tweets to airlines in the US, negative, neutral or positive (Crowdflower's *Twitter Airline Sentiment*).

    Texts that differ in no word (case and punctuation aside) are kept once, and not at all where their classes differ,
    so no text is in two splits: 10,660 and 14,319 are left. Of each corpus 80 % are for training, 10 % for validation
    and 10 % for testing, class by class. Words are those of the training texts. Inputs are SciPy CSR matrices
    (N, `max_features`), float32, of which training makes a batch at a time dense; targets are (N,), of 0 and 1 as
    float32 (reviews) and int64 in 0..2 (tweets). `load` gives each part as {source: split}.

    With a vocabulary for each corpus, the same column stands for different words, and a network must have an encoder
    for each (`polytask.models.BySource`); with a common one it may share them.

    Args:
        folder: where ``rt-polarity.neg``, ``rt-polarity.pos`` (a sentence a line, Windows-1252) and
            ``airline_tweets.csv`` (columns ``text`` and ``sentiment``, UTF-8) are; else ``$POLYTASK_DATA/text`` and
            the like, see `data_folder`.
        max_features: the inputs' width, however few words there are, at least 1.
        min_df: words that stand in fewer training texts are left out, at least 1.
        weights: ``tfidf``, ``presence`` or ``counts``, see `BagOfWords`.
        common: one vocabulary, fitted on the training texts of both corpora.
        train_size: keeps only so many training texts of each corpus, at least 1, or {source: so many}; None keeps all.
        seed: of the splits, 0..2**32 - 1.

    Raises:
        ValueError: an argument is out of its range, or `train_size` names an unknown source.

    >>> [(task.name, task.labels) for task in Sentiment().tasks]
    [('reviews', ('negative', 'positive')), ('tweets', ('negative', 'neutral', 'positive'))]
    """

    tasks = (
        binary("reviews", labels=REVIEW_CLASSES),
        classification("tweets", classes=len(TWEET_CLASSES), labels=TWEET_CLASSES),
    )
    files = (*REVIEW_FILES, TWEET_FILE)

    def __init__(
        self,
        folder: str | Path | None = None,
        max_features: int = 5000,
        min_df: int = 2,
        weights: str = "tfidf",
        common: bool = False,
        train_size: int | dict[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        BagOfWords(max_features, min_df, weights)  # checks them before any file is read
        self.folder = folder
        self.max_features = max_features
        self.min_df = min_df
        self.weights = weights
        self.common = common
        self.train_size = train_size
        self.seed = check_seed(seed)
        self._sizes = _sizes(train_size)

    def load(self) -> Splits:
        """Reads and splits the texts, and fits the vocabularies on those for training.

        Raises:
            FileNotFoundError: files are missing; the message says which go where.
            ValueError: a file is damaged, a class has too few texts, there are fewer than `train_size`, or no word
                is left.
        """
        return self._load()[0]

    def vocabularies(self) -> dict[str, BagOfWords]:
        """{source: its fitted bag of words}, to `transform` texts of one's own; the same one twice if `common`.

        Raises:
            FileNotFoundError, ValueError: as `load` does.
        """
        return self._load()[1]

    def _load(self) -> tuple[Splits, dict[str, BagOfWords]]:
        place = data_folder(self.folder, _FOLDER, self.files)
        read = {"reviews": read_reviews(place), "tweets": read_tweets(place)}
        parts = {name: self._split(name, distinct(corpus)) for name, corpus in read.items()}
        bags = self._fit({name: parts[name][0].texts for name in _SOURCES})
        made = [{name: _encoded(name, parts[name][i], bags[name]) for name in _SOURCES} for i in range(len(_PARTS))]
        return Splits(*made), bags

    def _split(self, name: str, corpus: Corpus) -> tuple[Corpus, Corpus, Corpus]:
        from sklearn.model_selection import train_test_split

        classes = REVIEW_CLASSES if name == "reviews" else TWEET_CLASSES
        for number, label in enumerate(classes):
            if corpus.labels.count(number) < PER_CLASS:
                raise ValueError(
                    f"{name}: every class must have at least {PER_CLASS} different texts, found "
                    f"{corpus.labels.count(number)} of `{label}`"
                )
        rows, labels = list(range(len(corpus.texts))), corpus.labels
        train, rest = train_test_split(rows, test_size=0.2, stratify=labels, random_state=self.seed)
        kept = [labels[row] for row in rest]
        validation, test = train_test_split(rest, test_size=0.5, stratify=kept, random_state=self.seed)
        size = self._sizes.get(name, len(train))
        if size > len(train):
            raise ValueError(
                f"`train_size` must be at most {len(train)}, the training texts of `{name}` there are, found {size}"
            )
        return corpus.rows(train[:size]), corpus.rows(validation), corpus.rows(test)

    def _fit(self, texts: Mapping[str, list[str]]) -> dict[str, BagOfWords]:
        if self.common:
            together = [text for each in texts.values() for text in each]
            return dict.fromkeys(texts, self._bag().fit(together, " and ".join(texts)))
        return {name: self._bag().fit(each, name) for name, each in texts.items()}

    def _bag(self) -> BagOfWords:
        return BagOfWords(self.max_features, self.min_df, self.weights)


def read_reviews(folder: Path) -> Corpus:
    """The reviews as they are in the files, a sentence a line.

    Raises:
        ValueError: a file is not Windows-1252 text.
    """
    texts: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(REVIEW_FILES):
        path = locate(folder, name)
        text = _decoded(path, "cp1252")
        lines = [line.strip() for line in text.split("\n") if line.strip()]  # `splitlines` splits at some signs too
        texts += lines
        labels += [label] * len(lines)
    return Corpus(texts, labels)


def read_tweets(folder: Path) -> Corpus:
    """The tweets as they are in the file.

    Raises:
        ValueError: it is not UTF-8, not a CSV file with both columns, or holds a row without text or of another class.
    """
    import pandas as pd

    path = locate(folder, TWEET_FILE)
    try:
        table = pd.read_csv(io.StringIO(_decoded(path, "utf-8-sig")), dtype=str, keep_default_na=False)
        table = table.fillna("")  # what is missing at the end of a short row
    except ValueError as error:  # of pandas: an empty file, rows of different length
        raise ValueError(f"{path}: the tweets must be a CSV file, found: {' '.join(str(error).split())}") from error
    for column in COLUMNS:
        if column not in table.columns:
            found = ", ".join(f"`{name}`" for name in table.columns)
            raise ValueError(f"{path}: the tweets must have columns `text` and `sentiment`, found {found}")
    for row, (text, label) in enumerate(zip(table["text"], table["sentiment"], strict=True), start=1):
        if label not in TWEET_CLASSES or not text.strip():
            wrong = f"no text in row {row}" if label in TWEET_CLASSES else f"`{label}` in row {row}"
            raise ValueError(f"{path}: every row must have a text and one of {', '.join(TWEET_CLASSES)}, found {wrong}")
    return Corpus(list(table["text"]), [TWEET_CLASSES.index(label) for label in table["sentiment"]])


def distinct(corpus: Corpus) -> Corpus:
    """The texts that differ in some word, the first of equal ones; where their classes differ, none of them.

    >>> distinct(Corpus(["A fine film.", "a fine film!", "So so.", "so, so"], [1, 1, 0, 1]))
    Corpus(texts=['A fine film.'], labels=[1])
    """
    first: dict[tuple[str, ...], int] = {}
    unclear: set[tuple[str, ...]] = set()
    for row, (text, label) in enumerate(zip(*corpus, strict=True)):
        key = tuple(re.findall(r"\w+", text.lower())) or (text.strip(),)
        if corpus.labels[first.setdefault(key, row)] != label:
            unclear.add(key)
    return corpus.rows([row for key, row in first.items() if key not in unclear])


def _decoded(path: Path, encoding: str) -> str:
    try:
        return file_content(path).decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: its text must be encoded as {encoding.removesuffix('-sig')}, found byte "
            f"0x{error.object[error.start]:02x} at position {error.start}"
        ) from error


def _encoded(name: str, corpus: Corpus, bag: BagOfWords) -> Split:
    labels: Tensor = torch.tensor(corpus.labels)
    return Split(bag.transform(corpus.texts), {name: labels.float() if name == "reviews" else labels})


def _sizes(train_size: int | Mapping[str, int] | None) -> dict[str, int]:
    """{source: training texts to keep}, for those that are limited."""
    if train_size is None:
        return {}
    limited = isinstance(train_size, Mapping)
    sizes: dict[str, int] = dict(train_size) if limited else dict.fromkeys(_SOURCES, train_size)
    for name, size in sizes.items():
        if name not in _SOURCES:
            raise ValueError(f"`train_size` must name sources, found `{name}`: {nearest(name, _SOURCES)}")
        whole("train_size", size, 1)
    return sizes
