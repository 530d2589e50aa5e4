import pytest
import torch

from reference.testbeds import text, words

SMALL = 300_000


@pytest.fixture(scope="module")
def full():
    return words.words()


@pytest.fixture(scope="module")
def small():
    return words.words(512, byte_cap=SMALL)


def test_about_half_a_million_words_split_90_to_5_to_5(full):
    sizes = [len(side) for side in (full.train, full.validation, full.test)]
    assert 350_000 < sum(sizes) < 600_000
    assert all(0.03 < size / sum(sizes) < 0.08 for size in sizes[1:])
    assert all(side.dtype == torch.int64 for side in (full.train, full.validation, full.test))
    assert full.vocabulary[0] == words.UNKNOWN_WORD
    assert len(full.vocabulary) == len(full.counts) == 4096


def test_few_words_are_unknown(full):
    assert (full.train == 0).float().mean() < 0.05
    assert (full.test == 0).float().mean() < 0.1


def test_no_document_is_on_two_sides_and_the_test_side_is_what_the_characters_hold_out(full):
    sides = [set(names) for names in full.names.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert full.names["test"] == text.corpus("DOC").validation_names
    for names in full.names.values():
        assert {name.partition(":")[0] for name in names} == {"topic", "module"}


def test_ids_go_by_falling_frequency(small):
    counts = small.counts[1:]
    assert (counts[:-1] >= counts[1:]).all()
    assert counts[-1] > 0
    assert torch.equal(small.counts, torch.bincount(small.train, minlength=512))
    ties = [(a, b) for a, b, same in zip(small.vocabulary[1:], small.vocabulary[2:], counts[:-1] == counts[1:],
                                         strict=False) if same]
    assert ties
    assert all(a < b for a, b in ties)


def test_tokens_are_words_numbers_and_marks():
    assert words.tokens_of("Don't call os.path_Join(12,\n 'x')!") == [
        "don't", "call", "os", ".", "path", "_", "join", "(", "12", ",", "'", "x", "'", ")", "!"]


def test_encode_leaves_out_no_token():
    assert words.encode(["a", "zebra", "b"], {"a": 1, "b": 2}).tolist() == [1, 0, 2]


def test_the_ids_spell_the_text(small):
    train = text.corpus("DOC", SMALL)
    inside = [name for name in train.train_names if words.part_of(name) == "train"]
    assert tuple(inside) == small.names["train"]
    spelled = [small.vocabulary[i] for i in small.train[:200].tolist()]
    assert spelled.count(words.UNKNOWN_WORD) < 60


def test_a_larger_vocabulary_refines_a_smaller_one(small):
    larger = words.words(1024, byte_cap=SMALL)
    assert larger.vocabulary[:512] == small.vocabulary
    merged = torch.where(larger.train < 512, larger.train, 0)
    assert torch.equal(merged, small.train)
    assert larger.digest != small.digest


def test_refusals():
    with pytest.raises(ValueError, match="raise it"):
        words.words(64, byte_cap=1000)
    with pytest.raises(ValueError, match="vocabulary must lie in"):
        words.words(100_000, byte_cap=SMALL)
    with pytest.raises(ValueError, match="vocabulary must lie in"):
        words.words(1, byte_cap=SMALL)
