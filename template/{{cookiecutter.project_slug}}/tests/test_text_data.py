"""The documentation's text: sections, splits, sequences, passages."""

import itertools
from pydoc_data import topics

import numpy as np
import pytest

from {{cookiecutter.package_name}}.data.base import SPLITS
from {{cookiecutter.package_name}}.data.language_model import LanguageModelDataModule
from {{cookiecutter.package_name}}.data.pydoc_text import load_sections, split_at_headings
from {{cookiecutter.package_name}}.data.sections import Section, normal_form, split_sections
from {{cookiecutter.package_name}}.data.token_sequences import Blocks
from {{cookiecutter.package_name}}.data.tokenizer import word_ids
from {{cookiecutter.package_name}}.data.topics import (
    CHAPTERS,
    TopicsDataModule,
    labelled_passages,
    passages_of,
)


def test_headings_are_found_and_table_borders_are_not() -> None:
    text = "Title\n*****\n\none\n\nPart\n====\n\ntwo\n\n+-----+\n| box |\n|=====|\n| a   |\n+-----+\n"
    assert [part.split()[0] for part in split_at_headings(text) if part.strip()] == ["one", "two"]


def test_normal_form_ignores_wrapping_case_and_footnotes() -> None:
    assert normal_form("A built-\nin  type. [2]") == normal_form("a built-in type.\n[1]") != normal_form("a type")


def test_sections_hold_most_of_the_text_and_repeat_nothing() -> None:
    sections = load_sections()
    paragraphs = [normal_form(p) for section in sections for p in section.paragraphs]
    assert len(paragraphs) == len(set(paragraphs))
    whole = {
        normal_form(p)
        for text in topics.topics.values()
        for part in split_at_headings(text)
        for p in part.split("\n\n")
    }
    assert len(set(paragraphs) & whole) > 0.9 * len(whole)


@pytest.mark.parametrize("split_seed", [0, 1])
def test_splits_hold_whole_sections(split_seed: int) -> None:
    sections = load_sections()
    splits = split_sections(sections, split_seed)
    assert splits == split_sections(load_sections(), split_seed)
    assert sorted(s.text for split in splits.values() for s in split) == sorted(s.text for s in sections)
    total = sum(len(section.text) for section in sections)
    shares = {name: sum(len(s.text) for s in splits[name]) / total for name in SPLITS}
    assert shares == pytest.approx({"train": 0.75, "val": 0.1, "test": 0.15}, abs=0.03)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="2 sections of text came in; three splits need at least 3"):
        split_sections([Section("a", ("x",)), Section("b", ("y",))], split_seed=0)


def test_each_class_is_in_each_split_and_no_paragraph_in_two() -> None:
    splits = labelled_passages(load_sections(), split_seed=0)
    for passages in splits.values():
        assert {label for _, label in passages} == set(range(len(CHAPTERS)))
    seen = [{normal_form(p) for text, _ in splits[name] for p in text.split("\n\n")} for name in SPLITS]
    assert not any(a & b for a, b in itertools.combinations(seen, 2))


def test_passages_keep_all_paragraphs_in_order() -> None:
    section = Section("topic", tuple(f"{i} " + "word " * (7 * i % 80) for i in range(30)))
    passages = passages_of(section)
    assert "\n\n".join(passages) == section.text
    assert min(map(len, passages)) >= 300


def test_word_ids_do_not_depend_on_the_process() -> None:
    ids = word_ids("The cat the", 1000)
    assert len(ids) == 3 + 2
    assert ids[0] == ids[2] == 1 + 0x3C456DE6 % 999  # crc32 of "the"
    assert all(0 < i < 1000 for i in word_ids("a b c d e f g", 8)) or max(word_ids("a b c d e f g", 8)) < 8


def test_topics_batches() -> None:
    module = TopicsDataModule(batch_size=8, max_tokens=64)
    module.setup()
    inputs, labels = next(iter(module.test_dataloader()))
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (8, 64)
    assert labels.shape == (8,)
    assert module.baselines()["majority class"] < 0.6


def test_sequences_give_back_the_text() -> None:
    ids = np.frombuffer(b"abcdefghij", dtype=np.uint8).astype(np.int32)
    blocks = Blocks(ids, np.arange(1, 11), block_size=3)
    assert [bytes(example["tokens"].tolist()) for example in blocks] == [b"abcd", b"defg", b"ghij"]
    assert [example["num_bytes"].item() for example in blocks] == [3, 3, 3]
    assert len(Blocks(ids, np.arange(1, 11), block_size=10)) == 0


def test_language_model_batches() -> None:
    module = LanguageModelDataModule(block_size=64, batch_size=4)
    module.setup()
    batch = next(iter(module.test_dataloader()))
    assert batch["tokens"].shape == (4, 65)
    text = bytes(batch["tokens"][0].tolist()).decode(errors="ignore")
    assert text[:40] in split_sections(load_sections(), 0)["test"][0].text


def test_too_large_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size=1000000 is out of range: the train split's text has only"):
        LanguageModelDataModule(block_size=1_000_000).setup()
