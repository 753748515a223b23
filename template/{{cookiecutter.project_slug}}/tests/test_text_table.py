"""Tables of texts and labels: formats, classes, splits, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from {{cookiecutter.package_name}}.data.base import SPLITS
from {{cookiecutter.package_name}}.data.kept import check_kept
from {{cookiecutter.package_name}}.data.sections import text_key
from {{cookiecutter.package_name}}.data.text_table import TextTableDataModule

ROWS = [
    (f"number {i}, said {'nobody' if i % 4 else 'everybody'}\nin two lines", "no" if i % 4 else "yes")
    for i in range(80)
]


def write_table(path: Path, rows: list[tuple[Any, Any]], columns: tuple[str, str] = ("text", "label")) -> Path:
    """A table in the format of its name, with one more column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"id": i, columns[0]: text, columns[1]: label} for i, (text, label) in enumerate(rows)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["id", *columns], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return path


def module(path: Path | None, **settings: Any) -> TextTableDataModule:
    """A data module with all data in place."""
    made = TextTableDataModule(None if path is None else str(path), **{"vocab_size": 500, **settings})
    made.setup()
    return made


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_formats_hold_the_same(tmp_path: Path, suffix: str) -> None:
    made = module(write_table(tmp_path / f"t.{suffix}", ROWS))
    expected = module(write_table(tmp_path / "expected.csv", ROWS))
    assert made.examples == expected.examples
    assert made.fingerprint() == expected.fingerprint()
    pairs = {
        pair for split in SPLITS for pair in zip(made.examples.texts[split], made.examples.labels[split], strict=True)
    }
    assert pairs == {(text, ["no", "yes"].index(label)) for text, label in ROWS}
    assert made.facts()["class_names"] == ["no", "yes"]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_cells_may_be_long(tmp_path: Path, suffix: str) -> None:
    long = "long, quoted words\n" * 15_790
    assert len(long) > 300_000
    made = module(write_table(tmp_path / f"t.{suffix}", [*ROWS, (long, "yes")]))
    assert long in {text for split in SPLITS for text in made.examples.texts[split]}


def test_splits_are_stratified_and_seeded(tmp_path: Path) -> None:
    made = module(write_table(tmp_path / "t.csv", ROWS))
    counts = {split: [made.examples.labels[split].count(number) for number in (0, 1)] for split in SPLITS}
    assert counts == {"train": [45, 15], "val": [6, 2], "test": [9, 3]}
    assert module(tmp_path / "t.csv").examples == made.examples
    assert module(tmp_path / "t.csv", split_seed=1).examples != made.examples


def test_equal_texts_stay_in_one_split(tmp_path: Path) -> None:
    rows = [(f"Text {i % 20}{'!' * (i // 20)}", i % 2) for i in range(80)]
    made = module(write_table(tmp_path / "t.jsonl", rows))
    found = [{text_key(text) for text in made.examples.texts[split]} for split in SPLITS]
    assert not found[0] & found[1] | found[0] & found[2] | found[1] & found[2]
    assert sum(len(made.examples.texts[split]) for split in SPLITS) == 80


def test_files_of_their_own_for_validation_and_testing(tmp_path: Path) -> None:
    train = write_table(tmp_path / "train.csv", ROWS[:40])
    test = write_table(tmp_path / "test.csv", ROWS[40:])
    made = module(train, test_path=str(test))
    assert made.examples.texts["test"] == [text for text, _ in ROWS[40:]]
    assert len(made.examples.texts["train"]) + len(made.examples.texts["val"]) == 40
    whole = module(train, test_path=str(test), val_path=str(test))
    assert whole.examples.texts["train"] == [text for text, _ in ROWS[:40]]


def test_texts_in_two_given_splits_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write_table(tmp_path / "train.csv", ROWS[:40])
    val = write_table(tmp_path / "val.csv", ROWS[40:60])
    rows = [*ROWS[60:], (ROWS[3][0].upper() + " !", "no"), ROWS[5]]
    test = write_table(tmp_path / "test.csv", rows)
    # Each text takes two lines, and the header one.
    message = r"^2 of 22 texts of test are in train too, such as .*test\.csv, line 42\.$"
    with pytest.warns(UserWarning, match=message) as told:
        made = module(train, val_path=str(val), test_path=str(test))
    assert len(told) == 1
    made.fingerprint()  # without another warning
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    module(train, val_path=str(val), test_path=str(test))  # the first of several processes has told


def test_integers_are_ordered_as_numbers(tmp_path: Path) -> None:
    rows = [(f"text {i}", (10, 2, 1)[i % 3]) for i in range(60)]
    for name in ("t.csv", "t.parquet"):
        assert module(write_table(tmp_path / name, rows)).examples.class_names == ["1", "2", "10"]
        whole = [(text, float(label)) for text, label in rows]  # as of a column in which one was missing once
        assert module(write_table(tmp_path / name, whole)).examples.class_names == ["1", "2", "10"]


def test_batches_are_as_long_as_their_longest_text(tmp_path: Path) -> None:
    rows = [("word " * (1 + i % 7) + str(i), "ab"[i % 2]) for i in range(60)]
    path = write_table(tmp_path / "t.csv", rows)
    for tokenizer in ("words", "train", "bytes"):
        made = module(path, tokenizer=tokenizer, batch_size=4, max_tokens=9, num_workers=0)
        for loader in (made.train_dataloader(), made.test_dataloader()):
            for inputs, labels in loader:
                assert labels.dtype == torch.long
                lengths = inputs["attention_mask"].sum(dim=1)
                assert lengths.max() == inputs["input_ids"].shape[1] <= 9
                ids, mask = inputs["input_ids"], inputs["attention_mask"]
                assert torch.equal(mask, (torch.arange(ids.shape[1]) < lengths[:, None]).long())
                assert (ids[mask == 0] == made.tokenizer.pad_id).all()
                assert (ids < made.facts()["vocab_size"]).all()


def test_rows_and_lines_of_files(tmp_path: Path) -> None:
    made = module(write_table(tmp_path / "t.csv", ROWS), tokenizer="train")
    kept = made.settings_to_keep()
    new = write_table(tmp_path / "new" / "b.csv", [("one\ntwo", "?"), ("three", "?")])
    (tmp_path / "new" / "a.txt").write_text("first\n\nthird\n", encoding="utf-8")
    dataset: Any = made.files_dataset([tmp_path / "new"], kept)
    names = [Path(name).name for _, name in dataset.__getitems__(range(len(dataset)))]
    assert names == ["a.txt:1", "a.txt:3", "b.csv:2", "b.csv:4"]
    ids = dataset[3][0]["input_ids"].tolist()
    assert ids == made.tokenizer.encode(["three"], True)[0][0].tolist()
    with pytest.raises(ValueError, match="b.csv has no column 'review'; it has: id, text, label"):
        made.files_dataset([new], {**kept, "text_column": "review"})
    other = {**kept, "class_names": ["yes", "no"]}
    with pytest.raises(ValueError, match="was trained with other classes than the data have"):
        check_kept(kept, other, "x.ckpt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "text,tag\na,b\n", "t.csv has no column 'label'; it has: text, tag"),
        ("t.csv", "", "t.csv has no column 'text'; it has: none"),
        ("t.csv", "text,label\n", "t.csv is empty: it has no row"),
        ("t.csv", 'text,label\n"a\nb",x\n  ,y\n', "t.csv, line 4: the text in column 'text' is empty"),
        ("t.csv", 'text,label\n"a\nb",x\nc, \n', "t.csv, line 4: the label in column 'label' is missing"),
        ("t.csv", "text,label,label\na,x,y\n", "t.csv has 2 columns 'label': rename them"),
        ("t.csv", "text,label\na,b,c\n", "t.csv, line 2: 3 cells, and the header has 2"),
        ("t.csv", 'text,label\n"a"b,c\n', "t.csv, line 2: .*expected"),
        ("t.csv", "text,label\na,x\nb,x\n", "t.csv: column 'label' holds one class only, 'x'"),
        ("t.csv", "text,label\na,x\nb,y\n", "t.csv: no class has 3 different examples, one for each of train, val"),
        ("t.jsonl", '{"text": "a", "label": 0}\n{"text": "b"\n', "t.jsonl, line 2: no JSON"),
        ("t.jsonl", '{"text": "a", "label": 0}\n\n{"text": "b"}\n', "t.jsonl, line 3 has no column 'label'"),
        ("t.jsonl", '{"text": "a", "label": 0.5}\n', "t.jsonl, line 1: label 0.5 is neither text nor an integer"),
        ("t.jsonl", '{"text": 3, "label": 0}\n', "t.jsonl, line 1: column 'text' holds 3, which is no text"),
        ("t.jsonl", '["text"]\n', "t.jsonl, line 1: .* is no object with columns"),
        ("t.parquet", "text", "t.parquet is not a parquet file"),
        ("t.xlsx", "text", "t.xlsx ends with none of .csv, .tsv"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        module(tmp_path / name)


def test_labels_outside_the_range_are_named(tmp_path: Path) -> None:
    rows = [(f"text {i}", i % 3) for i in range(60)]
    path = write_table(tmp_path / "t.csv", rows)
    with pytest.raises(ValueError, match="t.csv, line 4: label 2 in column 'label' is none of the classes: 0 to 1"):
        module(path, class_names=["a", "b"])
    with pytest.raises(ValueError, match="t.csv: class 'd' has no example in the train split: leave it out"):
        module(path, class_names=["a", "b", "c", "d"])
    odd = write_table(tmp_path / "odd.csv", [*rows[:5], ("half", 1.5)])
    with pytest.raises(ValueError, match="odd.csv, line 7: label '1.5' in column 'label' is none of the classes"):
        module(odd, class_names=["a", "b", "c"])
    # In a column of text the name of a class comes before its number.
    stars = write_table(tmp_path / "stars.csv", [(f"text {i}", ("1", "2", "none")[i % 3]) for i in range(60)])
    made = module(stars, class_names=["2", "1", "none"])
    found = zip(made.examples.texts["train"], made.examples.labels["train"], strict=True)
    assert all(label == (1, 0, 2)[int(text.split()[1]) % 3] for text, label in found)
    # Beyond 2**53 neighbours are one floating-point number.
    large = write_table(tmp_path / "large.csv", [(f"text {i}", 76561198000000001 + i % 2) for i in range(60)])
    assert module(large).examples.class_names == ["76561198000000001", "76561198000000002"]
    test = write_table(tmp_path / "test.csv", [("x", 0), ("y", 5)])
    with pytest.raises(ValueError, match="test.csv, line 3: label 5 in column 'label' is none of the classes: 0, 1, 2"):
        module(path, test_path=str(test))


def test_columns_called_alike_in_parquet(tmp_path: Path) -> None:
    column = pa.array(["a", "b"])
    pq.write_table(pa.table([column, column, column], names=["text", "label", "label"]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="t.parquet has 2 columns 'label': rename them"):
        module(tmp_path / "t.parquet")


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(b"text,label\ncaf\xe9,1\n")
    with pytest.raises(ValueError, match=r"bad.csv, line 2: byte 14 \(0xe9\) is not utf-8"):
        module(tmp_path / "bad.csv")
    with pytest.raises(ValueError, match="data.path is missing"):
        module(None)
    with pytest.raises(ValueError, match="is a folder: name one csv, tsv, json, jsonl or parquet file"):
        module(tmp_path)
    with pytest.raises(ValueError, match="data.test_path=nowhere.csv does not exist"):
        module(write_table(tmp_path / "t.csv", ROWS), test_path="nowhere.csv")
