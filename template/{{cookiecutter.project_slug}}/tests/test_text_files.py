"""A folder or a file of text: splits, tokens, bytes, and what is refused."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from {{cookiecutter.package_name}}.baselines.bigram import bigram_bits_per_byte
from {{cookiecutter.package_name}}.data.base import SPLITS
from {{cookiecutter.package_name}}.data.kept import check_kept
from {{cookiecutter.package_name}}.data.language_model import LanguageModelDataModule
from {{cookiecutter.package_name}}.data.make_tokenizer import spread
from {{cookiecutter.package_name}}.data.sections import Section, document_of, text_key, without_repeats
from {{cookiecutter.package_name}}.data.text_files import TextFilesDataModule
from {{cookiecutter.package_name}}.data.token_sequences import NO_TOKEN
from {{cookiecutter.package_name}}.data.tokenizer import SubwordTokenizer, byte_ends, tokenizer_from_kept

WORDS = ["über", "Straße", "naïve", "the", "a", "grey", "cat", "sat", "mat", "looked", "日本", "🙂", "far", "rain"]


def paragraphs(count: int, seed: int) -> list[str]:
    """Different sentences, some beyond ASCII."""
    draw = random.Random(seed)
    return [f"{seed}/{i} " + " ".join(draw.choices(WORDS, k=20)) for i in range(count)]


def write_folder(folder: Path, num_files: int, seed: int = 0) -> Path:
    """Text files in two folders, one beside others that are no text."""
    for i in range(num_files):
        file = folder / ("deep" if i % 2 else "") / f"{i:03}.{'md' if i % 3 else 'txt'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n\n".join(paragraphs(10, 100 * seed + i)), encoding="utf-8")
    for hidden in ("image.bin", "._000.txt", ".git/notes.md"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"\xff\x00")
    return folder


def module(path: Path, **settings: Any) -> TextFilesDataModule:
    """A data module with all data in place."""
    made = TextFilesDataModule(str(path), **{"tokenizer": "bytes", "block_size": 16, "batch_size": 4, **settings})
    made.setup()
    return made


def keys(made: TextFilesDataModule, split: str) -> set[bytes]:
    """The paragraphs of a split."""
    return {text_key(paragraph) for section in made.splits[split] for paragraph in section.paragraphs}


@pytest.mark.parametrize("num_files", [1, 3, 40])
def test_no_paragraph_is_in_two_splits(tmp_path: Path, num_files: int) -> None:
    folder = write_folder(tmp_path / "texts", num_files)
    if num_files == 1:
        (folder / "000.txt").write_text("\n\n".join(paragraphs(400, 7)), encoding="utf-8")
    made = module(folder)
    found = {split: keys(made, split) for split in SPLITS}
    assert not found["train"] & found["val"] | found["train"] & found["test"] | found["val"] & found["test"]
    total = sum(map(len, found.values()))
    assert total == (400 if num_files == 1 else 10 * num_files)
    assert {split: len(found[split]) / total for split in SPLITS} == pytest.approx(
        {"train": 0.75, "val": 0.1, "test": 0.15}, abs=0.06
    )
    if num_files == 40:  # whole files
        topics = [section.topic for split in SPLITS for section in made.splits[split]]
        assert len(set(topics)) == len(topics) == 40


def test_a_paragraph_that_is_repeated_stays_in_training() -> None:
    splits = {name: [Section(name, (f"only {name}", "A footer, everywhere"))] for name in SPLITS}
    cleaned = without_repeats(splits)
    assert cleaned["train"] == splits["train"]
    assert cleaned["val"][0].paragraphs == ("only val",)
    assert cleaned["test"][0].paragraphs == ("only test",)


def test_lines_are_paragraphs_where_no_blank_line_is() -> None:
    text = "\n".join(f"line {i}" for i in range(300))
    assert document_of("log", text).text == text
    assert len(document_of("log", text).paragraphs) == 300
    assert document_of("prose", "a\nb\n\n  c\n \n\nd\n").paragraphs == ("a\nb", "  c", "d")


def test_pieces_are_the_text() -> None:
    section = Section("x", tuple(paragraphs(50, 3)))
    pieces = list(section.pieces(500))
    assert len(pieces) > 5
    assert "".join(pieces) == section.text
    assert "".join(section.pieces(10**9)) == section.text


def test_bytes_of_tokens_add_up(tmp_path: Path) -> None:
    made = module(write_folder(tmp_path, 30), tokenizer="train", vocab_size=300)
    tokenizer = made.tokenizer
    assert isinstance(tokenizer, SubwordTokenizer)
    assert tokenizer.vocab_size == made.facts()["vocab_size"] == 300
    text = "naïve 日本🙂x Straße"
    [(ids, ends)] = tokenizer.encode([text], with_special=False)
    assert ends[-1] == len(text.encode())
    assert (np.diff(ends) >= 0).all()
    assert byte_ends("aé🙂", [1, 2, 3, 3]).tolist() == [1, 3, 7, 7]
    for split in SPLITS:
        whole = sum(len(section.text.encode()) for section in made.splits[split])
        counted = sum(example["num_bytes"].item() for example in made.datasets[split])  # type: ignore[attr-defined]
        # The first token is not predicted, and the last ones do not fill a sequence.
        assert whole - 17 * 20 < counted <= whole


def test_the_tokenizer_comes_from_the_training_split_alone(tmp_path: Path) -> None:
    first = module(write_folder(tmp_path / "a", 30), tokenizer="train", vocab_size=300)
    again = module(write_folder(tmp_path / "b", 30), tokenizer="train", vocab_size=300)
    assert first.settings_to_keep() == again.settings_to_keep()
    assert first.fingerprint() == again.fingerprint()
    held_out = first.splits["test"][0].topic
    Path(held_out.replace("/a/", "/b/")).write_text("zq " * 500, encoding="utf-8")
    changed = TextFilesDataModule(str(tmp_path / "b"), tokenizer="train", vocab_size=300, block_size=16)
    assert changed.fingerprint() != first.fingerprint()
    splits = again.splits
    changed.read_splits = lambda: {**splits, "test": [Section("x", ("zq " * 500,))]}  # type: ignore[method-assign]
    changed.setup()
    assert changed.settings_to_keep() == first.settings_to_keep()


def test_a_tokenizer_of_much_text_is_trained_on_a_part_of_all_of_it() -> None:
    texts = ["a" * 10] * 100
    assert len(spread(texts, 1000)) == len(spread(texts, 5000)) == 100
    assert len(spread(texts, 500)) == 50
    assert spread(["a", "b", "c", "d"], 2) == ["a", "c"]
    assert spread([], 2) == []


def test_kept_tokenizer_is_enough(tmp_path: Path) -> None:
    made = module(write_folder(tmp_path, 30), tokenizer="train", vocab_size=300)
    kept = made.settings_to_keep()
    again = tokenizer_from_kept(kept["tokenizer"])
    text = ["the grey cat sat", "日本"]
    assert [ids.tolist() for ids, _ in again.encode(text, False)] == [
        ids.tolist() for ids, _ in made.tokenizer.encode(text, False)
    ]
    check_kept(kept, made.settings_to_keep(), "x.ckpt")
    other = module(write_folder(tmp_path / "other", 30, seed=5), tokenizer="train", vocab_size=300)
    with pytest.raises(ValueError, match="x.ckpt was trained with other tokens than the data have"):
        check_kept(kept, other.settings_to_keep(), "x.ckpt")


@pytest.mark.parametrize("tokenizer", ["bytes", "train"])
def test_lines_of_files_are_covered_once(tmp_path: Path, tokenizer: str) -> None:
    made = module(write_folder(tmp_path / "texts", 30), tokenizer=tokenizer)
    text = "short\n\n" + " ".join(WORDS * 3) + "\nend"
    (tmp_path / "new.txt").write_text(text, encoding="utf-8")
    dataset: Any = made.files_dataset([tmp_path / "new.txt"], made.settings_to_keep())
    batch = dataset.__getitems__(range(len(dataset)))
    names = [name for _, name in batch]
    assert names[0] == f"{tmp_path / 'new.txt'}:1"
    assert names[1] == f"{tmp_path / 'new.txt'}:3 (tokens 1 to 16)"
    assert names[-1] == f"{tmp_path / 'new.txt'}:4"
    assert sum(inputs["num_bytes"].item() for inputs, _ in batch) == len(text.replace("\n", "").encode())
    assert len({inputs["tokens"].shape for inputs, _ in batch}) == 1
    assert (batch[-1][0]["tokens"] == NO_TOKEN).any()

    made.predict_by = "file"
    whole: Any = made.files_dataset([tmp_path / "new.txt"], made.settings_to_keep())
    assert whole[0][1] == f"{tmp_path / 'new.txt'} (tokens 1 to 16)"
    assert sum(whole[i][0]["num_bytes"].item() for i in range(len(whole))) == len(text.encode())


def test_baseline_is_that_of_the_bytes_whatever_the_tokens(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, 30)
    expected = module(folder).baselines()
    assert module(folder, tokenizer="train").baselines() == expected
    assert 1 < expected["byte bigrams"] < 8
    long = np.random.default_rng(0).integers(0, 3, size=(1, 5_000_000), dtype=np.uint8)
    assert bigram_bits_per_byte(long, long) == pytest.approx(np.log2(3), abs=1e-4)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\ncaf\xe9\n", r"bad.txt, line 2: byte 8 \(0xe9\) is not utf-8; convert the file"),
        ("text".encode("utf-16-le"), "bad.txt, line 1: a zero byte"),
        (b"  \n\n", "holds nothing|no file holds anything but blanks; files: 1"),
        (b"one\n\ntwo", "2 sections of text came in"),
        (b"one\n\ntwo\n\nthree", "block_size=16 is out of range: the (train|val|test) split's text has only"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(write(tmp_path / "bad.txt", content).parent)


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "texts", 3)
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(OSError, match=r"gone\.txt"):
        module(folder)


def test_encodings_and_line_ends(tmp_path: Path) -> None:
    text = "\n\n".join(paragraphs(60, 1)).replace("日本", "").replace("🙂", "")
    write(tmp_path / "a" / "x.txt", text.encode())
    write(tmp_path / "b" / "x.txt", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    write(tmp_path / "c" / "x.txt", text.encode("latin-1"))
    texts = [
        ["".join(section.paragraphs) for split in SPLITS for section in made.splits[split]]
        for made in (module(tmp_path / "a"), module(tmp_path / "b"), module(tmp_path / "c", encoding="latin-1"))
    ]
    assert texts[0] == texts[1] == texts[2]
    with pytest.raises(ValueError, match="data.encoding=klingon is unknown"):
        module(tmp_path / "a", encoding="klingon")


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "texts", 2)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"vocab_size": 100, "tokenizer": "train"}, "vocab_size=100 is out of range: .* are 258"),
        ({"tokenizer": "words"}, "tokenizer=words forgets the order"),
        ({"tokenizer": "none.json"}, "data.tokenizer=none.json is not a file"),
        ({"tokenizer": str(write(tmp_path / "t.json", b"{}"))}, "t.json is not a tokenizer.json"),
        ({"tokenizer": str(write(tmp_path / "t.ckpt", b"{}"))}, "t.ckpt is not a checkpoint with a tokenizer"),
        ({"predict_by": "word"}, "predict_by=word is unknown; accepted: line, file"),
        ({"patterns": ["*.rst"]}, r"holds no file that matches \*.rst"),
        ({"block_size": 10**6}, "block_size=1000000 is out of range"),
    ]
    for settings, message in refused:
        with pytest.raises(ValueError, match=message):
            module(folder, **settings)
    with pytest.raises(ValueError, match="data.path=.*nowhere does not exist"):
        module(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="data.path is missing"):
        TextFilesDataModule().setup()


def test_embedded_text_in_tokens() -> None:
    made = LanguageModelDataModule(tokenizer="train", vocab_size=300, block_size=32)
    made.setup()
    assert made.facts() == {"vocab_size": 300, "block_size": 32, "eos_token_id": 1}
    batch = next(iter(made.train_dataloader()))
    assert batch["tokens"].shape == (32, 33)
    assert batch["tokens"].max() < 300
