import pytest
import torch

from internals_math import tiny_lm
from internals_math.tiny_lm import stories, vocabulary
from internals_math.tiny_lm.datasets import make_corpus


def test_there_are_112_different_words_and_they_survive_encoding():
    assert len(set(vocabulary.WORDS)) == tiny_lm.VOCAB_SIZE == 112
    assert tiny_lm.tokens(tiny_lm.encode(" ".join(vocabulary.WORDS), bos=False)) == vocabulary.WORDS
    assert tiny_lm.tokens(torch.tensor(tiny_lm.encode("one day"))) == ("<bos>", "one", "day")


def test_the_prompt_has_eight_tokens_and_opens_the_series_story():
    assert len(tiny_lm.encode(tiny_lm.PROMPT)) == 8
    assert tiny_lm.story(0).startswith(tiny_lm.PROMPT)
    assert tiny_lm.story(0) != tiny_lm.story(1)


def test_a_word_out_of_the_vocabulary_is_refused_by_name():
    with pytest.raises(ValueError, match="'zebra' is not one of the 112 words of the story world"):
        tiny_lm.encode("one day the old zebra")


@pytest.mark.parametrize("index", [-1, 200])
def test_a_story_that_is_not_stored_is_refused(index):
    with pytest.raises(ValueError, match=rf"story_index must be in 0..199, got {index}"):
        tiny_lm.story(index)


def test_the_first_held_out_documents_stay_the_first():
    few, many = tiny_lm.held_out(10), tiny_lm.held_out(40)
    assert torch.equal(few.ids, many.first(10).ids)
    assert torch.equal(few.surprisal, many.first(10).surprisal)


def test_documents_fit_into_a_row_and_end_with_eos():
    corpus = make_corpus(stories.base_document, 2000, seed=8)
    assert corpus.ids.shape == (2000, 65)
    assert int(corpus.lengths.max()) <= 60
    last = corpus.ids.gather(1, corpus.lengths[:, None] - 1)[:, 0]
    assert (last == tiny_lm.EOS).all()
    assert ((corpus.ids != tiny_lm.PAD).sum(dim=1) == corpus.lengths).all()
    assert ((corpus.labels() == -100) == (corpus.ids == tiny_lm.PAD)).all()


def test_the_same_seed_gives_the_same_texts_and_another_seed_others():
    first, again, other = (make_corpus(stories.base_document, 50, seed) for seed in (1, 1, 2))
    assert first.hash == again.hash != other.hash


def test_training_and_held_out_tales_hardly_overlap():
    trained = set(tiny_lm.training_corpus(size=3000).texts())
    tales = tiny_lm.held_out_kind("tale", 200).texts()
    assert sum(text in trained for text in tales) <= 2


@pytest.mark.parametrize(("kind", "first_word"), tiny_lm.KINDS.items())
def test_documents_of_a_kind_begin_with_its_word(kind, first_word):
    assert all(text.startswith(first_word) for text in tiny_lm.held_out_kind(kind, 20).texts())


def test_an_unknown_kind_and_too_many_documents_are_refused():
    with pytest.raises(ValueError, match="kind must be one of tale, open book, closed book, song, got 'poem'"):
        tiny_lm.held_out_kind("poem")
    with pytest.raises(ValueError, match=r"count must be in 1\.\.\d+ .*got 5000"):
        tiny_lm.held_out_kind("song", 5000)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        make_corpus(stories.song, 0, seed=1)


def test_the_long_text_has_four_windows_of_64_predictions_and_an_exact_floor():
    long = tiny_lm.long_text(6)
    assert long.ids.shape == (6, 4 * 64 + 1)
    assert (long.lengths == 4 * 64 + 1).all()
    lines = [line for text in long.texts() for line in text.split(" . ")[:-1]]  # the last line may be cut
    known = stories.world().known
    assert all(known[line.split()[6], line.split()[3]] == line.split(" ? ")[1] for line in lines)
    # The exact nats of one line, since every line is drawn alike.
    per_line = sum(long.surprisal[:, :240].sum(dim=1)) / 6 / 20
    assert long.entropy_floor == pytest.approx(float(per_line) / 12, rel=0.05)


def test_answers_are_what_follows_the_question_mark():
    walks = tiny_lm.walk_corpus(32, seed=1)
    labels = tiny_lm.answer_labels(walks.ids)
    for ids, row, text in zip(walks.ids, labels, walks.texts(), strict=True):
        assert " ".join(tiny_lm.tokens(row[row >= 0])) == text.split(" ? ")[1] + " <eos>"
        assert (ids[row >= 0] == row[row >= 0]).all()
