import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.testbeds import text


def test_codes_are_ascii_and_the_split_is_about_95_to_5(corpus):
    assert corpus.train.dtype == corpus.validation.dtype == torch.uint8
    assert max(corpus.train.max(), corpus.validation.max()) < text.VOCABULARY
    share = len(corpus.validation) / (len(corpus.train) + len(corpus.validation))
    assert 0.02 < share < 0.09
    assert 500_000 < len(corpus.train) + len(corpus.validation) <= 2_000_000


def test_no_document_is_on_both_sides(corpus):
    assert not set(corpus.train_names) & set(corpus.validation_names)
    assert all(text.is_validation(name) for name in corpus.validation_names)
    assert not any(text.is_validation(name) for name in corpus.train_names)


def test_a_module_held_out_of_one_corpus_is_held_out_of_the_other():
    doc, code = text.corpus("DOC"), text.corpus("CODE")
    assert not set(doc.train_names) & set(code.validation_names)
    assert not set(code.train_names) & set(doc.validation_names)


def test_doc_holds_out_topics_and_docstrings(doc):
    kinds = {name.partition(":")[0] for name in doc.validation_names}
    assert kinds == {"topic", "module"}
    assert {name.partition(":")[0] for name in doc.train_names} == kinds


def test_no_long_passage_of_validation_was_seen_in_training(corpus):
    train, validation = text.decode(corpus.train), text.decode(corpus.validation)
    windows = [validation[start : start + 150] for start in range(0, len(validation) - 150, 211)]
    assert len(windows) > 100
    assert sum(window in train for window in windows) / len(windows) < 0.005


def test_no_long_paragraph_occurs_twice(corpus):
    paragraphs = "\n\n".join(text.decode(side) for side in (corpus.train, corpus.validation)).split("\n\n")
    long = [words for words in (" ".join(p.split()) for p in paragraphs) if len(words) >= 60]
    # Joining documents can put the start of one behind an unfinished paragraph of another; nothing else may repeat.
    assert len(long) - len(set(long)) <= 2


def test_code_has_neither_tests_nor_tables_nor_topics():
    names = text.corpus("CODE", byte_cap=20_000_000).train_names
    parts = {part for name in names for part in name.removeprefix("module:").split(".")}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "pydoc_data", "encodings", "sitecustomize"}
    assert {"json", "argparse"} <= parts


def test_a_smaller_cap_gives_a_prefix(doc):
    small = text.corpus("DOC", byte_cap=400_000)
    assert len(small.train) + len(small.validation) <= 400_000
    assert torch.equal(small.train, doc.train[: len(small.train)])
    assert torch.equal(small.validation, doc.validation[: len(small.validation)])
    assert small.digest != doc.digest


def test_corpora_are_cached_and_the_digest_is_that_of_the_content(doc):
    assert text.corpus("DOC") is text.corpus("DOC")
    parts = (hashlib.sha256(bytes(side.tolist())).digest() for side in (doc.train, doc.validation))
    assert doc.digest == hashlib.sha256(b"".join(parts)).hexdigest()


def test_another_process_with_another_hash_seed_and_locale_finds_the_same_corpus():
    code = "from reference.testbeds.text import corpus as c; print(c('DOC', 300_000).digest, c('CODE', 300_000).digest)"
    environment = {"PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONPATH": ":".join(p for p in sys.path if p) or "."}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [text.corpus(name, 300_000).digest for name in ("DOC", "CODE")]


def test_an_unknown_corpus_names_those_there_are():
    with pytest.raises(KeyError, match="DOC, CODE"):
        text.corpus("WIKI")


def test_a_cap_too_small_for_a_split_is_refused():
    with pytest.raises(ValueError, match="byte_cap=10"):
        text.corpus("DOC", byte_cap=10)


def test_missing_topics_are_a_lookup_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(LookupError, match=r"pydoc_data\.topics"):
        text.corpus("DOC", byte_cap=123_456)


def test_missing_sources_are_a_lookup_error(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(LookupError, match="sources are not in"):
        text.corpus("CODE", byte_cap=123_456)


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_survives_encoding(sample):
    assert text.decode(text.encode(sample)) == sample


def test_other_characters_become_question_marks():
    assert text.decode(text.encode("naïve \N{EM DASH} \N{SNOWMAN}")) == "na?ve ? ?"
