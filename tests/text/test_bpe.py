"""Byte-pair encoding: CLIP's numbers, and a part of its merges that divides the same texts in the same way."""

from __future__ import annotations

import pytest

from ornstein.text.bpe import BPE, clip_merges, learned_merges

TEXTS = ["a photo of an astronaut riding a horse, 42 times!", "A RED square's corner", "Käse & Bröt &amp; naïve", ""]


@pytest.fixture(scope="module")
def clip() -> BPE:
    merges = clip_merges()
    if merges is None:
        pytest.skip("open_clip_torch is not installed")
    return BPE(merges)


def test_the_numbers_are_those_of_transformers(clip: BPE) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = clip._number | {"<s>": clip.start, "<e>": clip.end}
    theirs = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocabulary, merges=clip.merges, end_of_word_suffix="</w>", unk_token="<e>")
    )
    split = tokenizers.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    theirs.normalizer = tokenizers.normalizers.Lowercase()
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(split, behavior="removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert len(clip) == 49408
    assert clip.encode("a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]  # as CLIP's users know them
    for text in TEXTS:
        if "&amp;" not in text:  # entities are undone before CLIP's tokenizer of transformers sees a text
            assert clip.encode(text)[1:-1] == theirs.encode(text).ids


def test_a_restricted_encoding_divides_its_texts_in_the_same_way(clip: BPE) -> None:
    small = clip.restricted(TEXTS)
    assert len(small) < 700
    symbols, ours = list(clip._number), list(small._number)
    for text in TEXTS:
        assert [ours[i] for i in small.encode(text)[1:-1]] == [symbols[i] for i in clip.encode(text)[1:-1]]
    assert small.encode("zyx")  # a word that it has not seen has pieces
    assert small.encode("") == [small.start, small.end]


def test_its_vocabulary_makes_a_tokenizer_of_transformers(clip: BPE) -> None:
    transformers = pytest.importorskip("transformers")
    small = clip.restricted(TEXTS)
    theirs = transformers.CLIPTokenizer(vocab=small.vocabulary, merges=list(small.merges), model_max_length=24)
    for text in ("a photo of a red square", "riding times", ""):
        assert theirs(text).input_ids == small.encode(text)


def test_learned_merges_join_the_words_of_the_texts() -> None:
    bpe = BPE(learned_merges(["red square", "red circle", "\N{SNOWMAN} red"]))
    assert [len(bpe.encode(text)) for text in ("red", "red square", "circle \N{SNOWMAN}")] == [3, 4, 4]
    assert bpe.merges[0] in (("e", "d</w>"), ("r", "e"))  # "red" is the most frequent word
    assert learned_merges([]) == []
