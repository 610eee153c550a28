"""Two corpora of texts."""

# ruff: noqa: E501 - tables of one case a line

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers import adam, same
from torch import nn

import polytask as pt
from polytask.data import Sentiment, data_folder
from polytask.data.base import as_splits
from polytask.data.sentiment import Corpus, distinct, read_reviews, read_tweets

TWEETS = ("negative", "neutral", "positive")
SOURCES = ("reviews", "tweets")


def _texts(kind: str, count: int, seed: int) -> list[str]:
    """Made-up texts, each with a number of its own and mostly words that tell its class."""
    random = np.random.default_rng(seed)
    words = [f"{kind}{i}" for i in range(6)] + [f"word{i}" for i in range(12)]
    share = [0.1] * 6 + [0.4 / 12] * 12
    return [f"{' '.join(random.choice(words, 8, p=share))} nr{seed}x{i}" for i in range(count)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes the three files and returns their folder."""

    def written(size: int = 60, compress: bool = False) -> Path:
        for number, kind in enumerate(("neg", "pos")):
            lines = "\n".join([*_texts(kind, size, number), ""])
            (tmp_path / f"rt-polarity.{kind}").write_bytes(lines.encode("cp1252"))
        with (tmp_path / "airline_tweets.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "sentiment"])
            for number, kind in enumerate(TWEETS):
                writer.writerows([f"@airline {text}", kind] for text in _texts(kind, size + 20 * number, 10 + number))
        if compress:
            for name in Sentiment.files:
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
                (tmp_path / name).unlink()
        return tmp_path

    return written


@pytest.mark.parametrize("compress", [False, True])
def test_each_corpus_is_a_source_with_a_task_split_class_by_class(write, compress):
    data = Sentiment(write(compress=compress), max_features=50)
    splits = as_splits(data.load(), "Sentiment")
    for source, task, counts in zip(SOURCES, data.tasks, ([60, 60], [60, 80, 100]), strict=True):
        for part, share in zip(splits, (0.8, 0.1, 0.1), strict=True):
            inputs, targets = part[source]
            assert list(targets) == [source] == [task.name]
            assert inputs.shape == (len(targets[source]), 50) and inputs.dtype == np.float32 and inputs.format == "csr"
            assert torch.equal(task.check(targets[source], "here"), targets[source])
            found = torch.bincount(targets[source].long())
            assert found.tolist() == pytest.approx([count * share for count in counts], abs=1)
    assert [task.labels for task in data.tasks] == [("negative", "positive"), TWEETS]


def test_no_text_is_in_two_splits_and_the_words_are_those_of_the_training_texts(write):
    data = Sentiment(write(), max_features=400, min_df=1, weights="counts")
    splits, bags = data.load(), data.vocabularies()
    for source in SOURCES:
        words = bags[source].words
        own = [i for i, word in enumerate(words) if word.startswith("nr")]  # the number that one text alone has
        train, validation, test = (part[source].inputs for part in splits)
        assert (train[:, own].toarray().sum(1) == 1).all()
        assert validation[:, own].nnz == test[:, own].nnz == 0
        assert (train.toarray().sum(0) >= 1).tolist() == [i < len(words) for i in range(400)]


def test_the_seed_makes_the_splits(write):
    folder = write()

    def load(seed: int) -> list:
        return [
            [part[s].inputs.toarray(), part[s].targets[s]]
            for part in Sentiment(folder, 50, seed=seed).load()
            for s in SOURCES
        ]

    first, again, other = load(3), load(3), load(4)
    for (inputs, targets), (more, same_targets) in zip(first, again, strict=True):
        assert np.array_equal(inputs, more) and torch.equal(targets, same_targets)
    assert not np.array_equal(first[0][0], other[0][0])


def test_one_vocabulary_of_both(write):
    folder = write()
    apart, together = Sentiment(folder, 90, min_df=3), Sentiment(folder, 90, min_df=3, common=True)
    separate, common = apart.vocabularies(), together.vocabularies()
    assert common["reviews"] is common["tweets"]
    assert "airline" in common["reviews"].words and "airline" not in separate["reviews"].words
    assert set(common["reviews"].words) >= set(separate["reviews"].words) | set(separate["tweets"].words)
    splits = together.load()
    assert [splits.test[source].inputs.shape[1] for source in SOURCES] == [90, 90]


@pytest.mark.parametrize(("size", "wanted"), [(20, (20, 20)), ({"tweets": 7}, (96, 7)), (None, (96, 192))])
def test_train_size(write, size, wanted):
    folder = write()
    splits, whole = (Sentiment(folder, 50, min_df=1, train_size=s).load() for s in (size, None))
    assert tuple(splits.train[source].inputs.shape[0] for source in SOURCES) == wanted
    for source in SOURCES:
        kept = len(splits.train[source].targets[source])
        assert torch.equal(splits.train[source].targets[source], whole.train[source].targets[source][:kept])
        assert torch.equal(splits.test[source].targets[source], whole.test[source].targets[source])


def test_texts_that_differ_in_no_word_are_kept_once_and_not_at_all_where_their_classes_differ():
    texts = [
        "Thank you!",
        "thank you",
        "\N{SMILING FACE WITH SMILING EYES}",
        "!",
        "so so",
        "So, so",
        "thank  YOU :)",
        "so so",
        " !",
    ]
    found = distinct(Corpus(texts, [1, 1, 1, 0, 0, 1, 1, 0, 0]))
    assert found == Corpus(["Thank you!", "\N{SMILING FACE WITH SMILING EYES}", "!"], [1, 1, 0])


def test_lines_end_where_lines_end(write):
    folder = write()
    text = "one \x85 two\nthree \xe9t\xe9\n\n  \nfour".encode("latin-1")  # 0x85 is an ellipsis in Windows-1252
    (folder / "rt-polarity.neg").write_bytes(text)
    assert read_reviews(folder).texts[:4] == [
        "one \N{HORIZONTAL ELLIPSIS} two",
        "three \xe9t\xe9",
        "four",
        read_reviews(folder).texts[3],
    ]
    assert read_reviews(folder).labels == [0] * 3 + [1] * 60


def test_cells_are_read_as_they_stand(write):
    folder = write()
    (folder / "airline_tweets.csv").write_text(
        '\ufefftext,sentiment\n"a, ""b""\nc",neutral\nNA,negative\n007,positive\n', encoding="utf-8"
    )
    assert read_tweets(folder) == Corpus(['a, "b"\nc', "NA", "007"], [1, 0, 2])


BAD = {
    "missing": (lambda f: (f / "rt-polarity.pos").unlink(), {}, FileNotFoundError, "text needs the files rt-polarity.neg, rt-polarity.pos, airline_tweets.csv"),
    "encoding of reviews": (lambda f: (f / "rt-polarity.pos").write_bytes(b"ab\x81"), {}, ValueError, "rt-polarity.pos: its text must be encoded as cp1252, found byte 0x81 at position 2"),
    "encoding of tweets": (lambda f: (f / "airline_tweets.csv").write_bytes(b"text,sentiment\n\xff,neutral\n"), {}, ValueError, "airline_tweets.csv: its text must be encoded as utf-8, found byte 0xff at position 15"),
    "empty": (lambda f: (f / "airline_tweets.csv").write_bytes(b""), {}, ValueError, "airline_tweets.csv: the tweets must be a CSV file, found: No columns to parse from file"),
    "long row": (lambda f: (f / "airline_tweets.csv").write_text("text,sentiment\na,neutral\nb,neutral,c\n"), {}, ValueError, "airline_tweets.csv: the tweets must be a CSV file, found: Error tokenizing data"),
    "short row": (lambda f: (f / "airline_tweets.csv").write_text("text,sentiment\na,neutral\nb\n"), {}, ValueError, "every row must have a text and one of negative, neutral, positive, found `` in row 2"),
    "column": (lambda f: (f / "airline_tweets.csv").write_text("text,sentimental\na,neutral\n"), {}, ValueError, "the tweets must have columns `text` and `sentiment`, found `text`, `sentimental`"),
    "class": (lambda f: (f / "airline_tweets.csv").write_text("text,sentiment\na,neutral\nb,Positive\n"), {}, ValueError, "found `Positive` in row 2"),
    "no text": (lambda f: (f / "airline_tweets.csv").write_text("text,sentiment\n ,neutral\n"), {}, ValueError, "found no text in row 1"),
    "few texts": (lambda f: (f / "rt-polarity.pos").write_text("one\nOne.\ntwo\n"), {}, ValueError, "reviews: every class must have at least 10 different texts, found 2 of `positive`"),
    "no word left": (lambda f: None, {"min_df": 500}, ValueError, "reviews: a vocabulary must hold at least one word, found none that stands in `min_df` = 500 of 96 texts"),
    "train_size": (lambda f: None, {"train_size": 97}, ValueError, "`train_size` must be at most 96, the training texts of `reviews` there are, found 97"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files(write, case: str):
    folder = write()
    damage, options, kind, message = BAD[case]
    damage(folder)
    with pytest.raises(kind) as caught:
        Sentiment(folder, **options).load()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_features": 0}, "`max_features` must be at least 1, found 0"),
        ({"weights": "idf"}, "`weights` must be one of"),
        ({"train_size": 0}, "`train_size` must be at least 1, found 0"),
        ({"train_size": {"tweet": 5}}, "`train_size` must name sources, found `tweet`: did you mean `tweets`?"),
        ({"seed": -1}, "`seed` must"),
    ],
)
def test_arguments(options: dict, message: str):
    with pytest.raises(ValueError) as caught:
        Sentiment(**options)
    assert message in str(caught.value)


def _trainer(mixture: object, width: int = 60, **options: object) -> pt.Trainer:
    torch.manual_seed(0)
    encoders = {name: nn.Sequential(nn.Linear(width, 8), nn.ReLU()) for name in SOURCES}
    model = pt.models.HardSharing(pt.models.BySource(encoders), {"reviews": nn.Linear(8, 1), "tweets": nn.Linear(8, 3)})
    return pt.Trainer(
        model, Sentiment.tasks, optimizer=adam(0.02), batch_size=16, mixture=mixture, progress=False, **options
    )


def test_a_network_with_an_encoder_for_each_learns_both(write):
    train, validation, test = Sentiment(write(), max_features=60).load()
    trainer = _trainer(pt.data.RoundRobin)
    history = trainer.fit(train, validation, epochs=6)
    assert len(history) == 6
    figures = trainer.evaluate(test)
    assert figures["reviews/accuracy"] > 0.8 and figures["tweets/accuracy"] > 0.7


def _real() -> Path:
    try:
        return data_folder(None, "text", Sentiment.files)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.data
def test_the_real_corpora():
    splits = Sentiment(_real()).load()
    for source, sizes in zip(SOURCES, ((8528, 1066, 1066), (11455, 1432, 1432)), strict=True):
        assert tuple(part[source].inputs.shape for part in splits) == tuple((size, 5000) for size in sizes)
    assert torch.bincount(splits.test["reviews"].targets["reviews"].long()).tolist() == [533, 533]
    again = Sentiment(_real()).load()
    assert same(splits.train["tweets"].targets, again.train["tweets"].targets)
    assert (splits.train["tweets"].inputs != again.train["tweets"].inputs).nnz == 0
