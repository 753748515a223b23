"""Hugging Face data sets, saved to disk or as files, and tokenizers that were made elsewhere."""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from {{cookiecutter.package_name}}.data.base import SPLITS
from {{cookiecutter.package_name}}.data.hf_labelled_text import HuggingFaceLabelledTextDataModule
from {{cookiecutter.package_name}}.data.hf_text import HuggingFaceTextDataModule
from {{cookiecutter.package_name}}.data.text_files import TextFilesDataModule
from {{cookiecutter.package_name}}.data.text_table import TextTableDataModule
from {{cookiecutter.package_name}}.packages import import_extra

TEXTS = [f"Row {i} speaks of {'cats and dogs' if i % 2 else 'rain and snow'}.\n\nMore on {i}." for i in range(60)]
LABELS = [i % 2 for i in range(60)]


def write_parquet(folder: Path, **rows: range) -> Path:
    """One parquet file per split, named as on the hub."""
    folder.mkdir()
    for name, numbers in rows.items():
        table = pa.table({"text": [TEXTS[i] for i in numbers], "label": [LABELS[i] for i in numbers]})
        pq.write_table(table, folder / f"{name}-00000-of-00001.parquet")
    return folder


def language_data(path: Path | str, **settings: Any) -> HuggingFaceTextDataModule:
    """A data module with all data in place."""
    made = HuggingFaceTextDataModule(str(path), **{"tokenizer": "bytes", "block_size": 16, **settings})
    made.setup()
    return made


def labelled_data(path: Path | str, **settings: Any) -> HuggingFaceLabelledTextDataModule:
    """A data module with all data in place."""
    made = HuggingFaceLabelledTextDataModule(str(path), **{"vocab_size": 300, **settings})
    made.setup()
    return made


def test_splits_of_files_are_those_of_their_names(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data", train=range(40), validation=range(40, 50), test=range(50, 60))
    made = language_data(folder)
    assert [section.text for section in made.splits["val"]] == TEXTS[40:50]
    assert [section.text for section in made.splits["test"]] == TEXTS[50:]
    labelled = labelled_data(folder)
    assert {split: len(labelled.examples.texts[split]) for split in SPLITS} == {"train": 40, "val": 10, "test": 10}
    assert labelled.examples.labels["test"] == LABELS[50:]


def test_missing_splits_come_from_training(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data", train=range(50), test=range(50, 60))
    made = language_data(folder)
    assert [section.text for section in made.splits["test"]] == TEXTS[50:]
    found = {section.text for split in ("train", "val") for section in made.splits[split]}
    assert found == set(TEXTS[:50])
    assert 2 <= len(made.splits["val"]) <= 7
    without_test = labelled_data(folder, test_split="none")
    assert sum(len(without_test.examples.texts[split]) for split in SPLITS) == 50
    with pytest.raises(ValueError, match="has no split 'dev'; it has: .*data.val_split="):
        language_data(folder, val_split="dev")


def test_texts_in_two_given_splits_are_told(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data", train=range(40), validation=range(40, 50), test=range(38, 60))
    place = r"such as .*test-00000-of-00001\.parquet, row 1"
    with pytest.warns(UserWarning, match=rf"^4 of 44 paragraphs of test are in train too, {place}: 'Row 38 .*'\.$"):
        language_data(folder)
    with pytest.warns(UserWarning, match=rf"^2 of 22 texts of test are in train too, {place}\.$"):
        labelled_data(folder)


def test_saved_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["rain", "cats"])}
    )
    whole = datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS}, features=features)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole.select(range(40)), test=whole.select(range(40, 60))).save_to_disk(tmp_path / "two")
    one, two = labelled_data(tmp_path / "one"), labelled_data(tmp_path / "two")
    assert one.facts()["class_names"] == two.facts()["class_names"] == ["rain", "cats"]
    assert two.examples.texts["test"] == TEXTS[40:]
    again = labelled_data(tmp_path / "one")
    # The same rows, of which others are tested on.
    assert one.fingerprint() == again.fingerprint() != two.fingerprint()
    assert len(language_data(tmp_path / "two").splits["test"]) == 20
    with pytest.raises(ValueError, match=r"one \(train\) has no column 'review'; it has: text, label"):
        labelled_data(tmp_path / "one", text_column="review")
    unlabelled = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=features)
    unlabelled.save_to_disk(tmp_path / "three")
    with pytest.raises(ValueError, match=r"three \(train\), row 2: label -1 .* none of the classes: 0 to 1"):
        labelled_data(tmp_path / "three")


def test_nothing_is_written(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data", train=range(60))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    labelled_data(folder, tokenizer="train")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_bad_data_are_refused(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data", train=range(4))
    with pytest.raises(ValueError, match="data.path=./nowhere does not exist"):
        language_data("./nowhere")
    with pytest.raises(ValueError, match="data.path is missing: name a data set on the hub"):
        HuggingFaceTextDataModule().setup()
    with pytest.raises(ValueError, match="parquet has no column 'review'; it has: text, label"):
        language_data(folder, text_column="review")
    with pytest.raises(ValueError, match="row 1: column 'label' holds 0, which is no text"):
        language_data(folder, text_column="label")
    pq.write_table(pa.table({"text": ["", None]}), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="row 1: column 'text' holds no text, here or in any other row"):
        language_data(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="holds too little text|split's text has only"):
        language_data(folder, block_size=4000)


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r'no_such_module is not installed: pip install -e "\.\[hf\]"'):
        import_extra("no_such_module", "hf")
    (tmp_path / "t.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'tokenizers is not installed: pip install -e "\.\[tokenizers\]"'):
        TextFilesDataModule(str(tmp_path), tokenizer="train").setup()
    TextFilesDataModule(str(tmp_path), tokenizer="bytes").setup()


def word_pieces(tmp_path: Path, special: list[str]) -> Path:
    """A tokenizer of whole words, as others make them: lower case, and with marks around a text."""
    tokenizers = pytest.importorskip("tokenizers")
    words = sorted({word for text in TEXTS for word in text.lower().replace(".", " .").split()})
    vocabulary = {token: number for number, token in enumerate([*special, "[UNK]", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    if "[CLS]" in special:
        marks = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
        made.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_tokenizer_by_path_or_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = word_pieces(tmp_path, ["[PAD]", "[CLS]", "[SEP]"])
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": TEXTS, "label": LABELS}), table)
    by_path = TextTableDataModule(str(table), tokenizer=str(path), max_tokens=6)
    by_path.setup()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="[PAD]", sep_token="[SEP]")
    fast.save_pretrained(tmp_path / "folder")
    by_folder = TextTableDataModule(str(table), tokenizer=str(tmp_path / "folder"), max_tokens=6)
    by_folder.setup()
    for made in (by_path, by_folder):
        inputs, _ = made.datasets["train"][0]
        text = made.examples.texts["train"][0]
        # Cut, with the marks in place, as the library itself does it.
        assert inputs["input_ids"].tolist() == fast(text, truncation=True, max_length=6)["input_ids"]
        assert made.facts()["pad_token_id"] == 0

    words = language_data(table, tokenizer=str(path))
    assert words.facts()["eos_token_id"] == 2
    total = sum(len(section.text.encode()) for section in words.splits["train"])
    counted = sum(example["num_bytes"].item() for example in words.datasets["train"])  # type: ignore[attr-defined]
    assert 0.95 * total < counted <= total


def test_a_tokenizer_without_a_token_is_refused(tmp_path: Path) -> None:
    path = word_pieces(tmp_path, [])
    folder = write_parquet(tmp_path / "data", train=range(60))
    with pytest.raises(ValueError, match="has no padding token: name one of its tokens with data.pad_token="):
        labelled_data(folder, tokenizer=str(path))
    with pytest.raises(ValueError, match="has no end of text token: name one of its tokens with data.eos_token="):
        language_data(folder, tokenizer=str(path))
    with pytest.raises(ValueError, match=r"data.pad_token=\[MASK\] is not a token of"):
        labelled_data(folder, tokenizer=str(path), pad_token="[MASK]")
    assert language_data(folder, tokenizer=str(path), eos_token="[UNK]").facts()["eos_token_id"] == 0
    pytest.importorskip("transformers")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="data.tokenizer=.*empty is none of train, bytes and words"):
        labelled_data(folder, tokenizer=str(tmp_path / "empty"))
