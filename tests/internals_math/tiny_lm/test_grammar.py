"""The exact probabilities: against enumeration, closed forms typed from the grammar's tables, and statistics."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from internals_math.tiny_lm import dialects, grammar, stories, walks
from internals_math.tiny_lm.datasets import entropy_floor, make_corpus, true_next_probs
from internals_math.tiny_lm.vocabulary import CAST, OBJECTS, encode, id_of


def enumerate_documents(document, prefix=""):
    """Return text -> probability of every document that begins with `prefix`, by walking the whole tree of choices."""
    texts, waiting = {}, [(prefix.split(), 1.0)]
    while waiting:
        said, probability = waiting.pop()
        run = document()
        try:
            choice = next(run)
            for word in said:
                choice = run.send(word)
            while len(choice) == 1:  # no branch here
                said.extend(choice)
                choice = run.send(said[-1])
        except StopIteration:
            texts[" ".join(said)] = probability
            continue
        waiting += [([*said, word], probability * share) for word, share in choice.items()]
    return texts


def nats(*shares):
    """Return the entropy of one choice."""
    return -sum(share * math.log(share) for share in shares)


H_PREPOSITION = nats(0.35, 0.25, 0.2, 0.2)
# Three, two, two and four places; both domains have the same numbers.
H_PLACE = H_PREPOSITION + 0.35 * math.log(3) + 0.25 * math.log(2) + 0.2 * math.log(2) + 0.2 * math.log(4)
RANKS = [1 / math.sqrt(rank) for rank in range(1, 7)]
H_RANK = nats(*(weight / sum(RANKS) for weight in RANKS))


def open_book_entropy():
    return math.log(12) + math.log(6) + H_PLACE


def tale_entropy():
    start = math.log(6) + math.log(2) + H_RANK + nats(0.6, 0.4) + math.log(6) + nats(0.4, *[0.12] * 5) + H_PLACE
    friend = nats(0.5, *[0.125] * 4)
    polite_found, polite_lost = 0.5, 0.5 * 0.8 + 0.5 * 0.1
    manners = 0.6 * nats(0.5, 0.5) + 0.4 * (0.5 * nats(0.8, 0.2) + 0.5 * nats(0.1, 0.9))
    polite = 0.6 * polite_found + 0.4 * polite_lost
    mood = polite * nats(0.9, 0.1) + (1 - polite) * nats(0.2, 0.8)
    deed = math.log(2)  # took or carried; gave or kept
    return start + friend + deed + manners + nats(0.4, 0.3, 0.3) + H_PLACE + mood + math.log(2)


def song_entropy():
    words = sum(math.log(24 - k) for k in range(5))  # the first five are always sung
    going_on = 1.0
    for sung in range(5, 9):
        words += going_on * (nats(0.2, 0.8) + 0.8 * math.log(24 - sung))
        going_on *= 0.8
    return math.log(12) + words + math.log(11) + math.log(10)


def closed_book_entropy():
    known = stories.world().known
    things = Counter(thing for _, thing in known)
    thing = nats(*(count / 24 for count in things.values()))
    owner = sum(count / 24 * math.log(count) for count in things.values())
    return 4 * (thing + owner)


def base_entropy():
    kinds = (0.55, tale_entropy()), (0.15, open_book_entropy()), (0.08, closed_book_entropy()), (0.22, song_entropy())
    return nats(*(share for share, _ in kinds)) + sum(share * entropy for share, entropy in kinds)


FOUND = "one day the old fox found a red key in the well ."


def found_tale_entropy():
    """Return the nats that are left after FOUND."""
    mood = 0.5 * nats(0.9, 0.1) + 0.5 * nats(0.2, 0.8)
    return math.log(2) + nats(0.5, *[0.125] * 4) + math.log(2) + nats(0.4, 0.3, 0.3) + H_PLACE + mood + math.log(2)


def news_entropy():
    return H_PLACE + math.log(6) + H_RANK + nats(0.3, 0.7) + math.log(6) + nats(0.9, 0.1)


@pytest.mark.parametrize(
    ("document", "prefix", "closed_form"),
    [
        (stories.open_book, "", open_book_entropy()),
        (stories.base_document, FOUND, found_tale_entropy()),
        (walks.walk_of(3, steps=True), "", math.log(6) + math.log(6) + 3 * math.log(2)),
    ],
)
def test_enumeration_and_closed_form_give_the_same_entropy(document, prefix, closed_form):
    texts = enumerate_documents(document, prefix)
    assert math.isclose(sum(texts.values()), 1, rel_tol=1e-12)
    assert math.isclose(nats(*texts.values()), closed_form, rel_tol=1e-12)


def test_the_floor_of_every_open_book_text_is_its_enumerated_probability():
    for text, probability in enumerate_documents(stories.open_book).items():
        surprisal = sum(grammar.surprisal(stories.open_book, encode(text)))
        assert math.isclose(surprisal, -math.log(probability), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("kind", "document", "closed_form"),
    [
        ("base mix", stories.base_document, base_entropy()),
        ("tale", stories.tale, tale_entropy()),
        ("song", stories.song, song_entropy()),
        ("closed book", stories.closed_book, closed_book_entropy()),
        ("news", dialects.news, news_entropy()),
    ],
)
def test_the_sampled_surprisal_is_the_entropy_within_four_standard_errors(kind, document, closed_form):
    rng = random.Random(11)
    sampled = torch.tensor([sum(grammar.sample_document(document, rng).surprisal) for _ in range(3000)]).double()
    standard_error = float(sampled.std() / math.sqrt(len(sampled)))
    assert standard_error < 0.02 * closed_form  # else the next line would say nothing
    assert abs(float(sampled.mean()) - closed_form) < 4 * standard_error + 1e-5  # float32


def test_texts_are_as_frequent_as_enumeration_says():
    expected = enumerate_documents(stories.open_book)
    count = 20 * len(expected)
    rng = random.Random(3)
    seen = Counter()
    for _ in range(count):
        # the document alone, without <bos> and <eos>
        seen[tuple(grammar.sample_document(stories.open_book, rng).ids[1:-1])] += 1
    chi_square = sum(
        (seen[tuple(encode(text, bos=False))] - count * share) ** 2 / (count * share)
        for text, share in expected.items()
    )
    freedom = len(expected) - 1
    assert abs(chi_square - freedom) < 4.5 * math.sqrt(2 * freedom)


def test_the_floor_of_ids_equals_the_floor_kept_while_sampling():
    corpus = make_corpus(stories.base_document, 60, seed=2)
    assert math.isclose(entropy_floor(corpus.ids), corpus.entropy_floor, rel_tol=1e-6)  # float32 in the corpus
    assert corpus.surprisal[corpus.ids[:, 1:] == 0].abs().sum() == 0


@given(st.integers(0, 10_000), st.sampled_from([*dialects.DIALECTS.values(), walks.walk_of(4, steps=True)]))
def test_every_next_word_distribution_of_a_document_sums_to_one(seed, document):
    words = make_corpus(document, 1, seed).texts()[0].split()
    for length in range(len(words) + 1):
        assert math.isclose(sum(grammar.next_choice(document, words[:length]).values()), 1, rel_tol=1e-12)
    assert grammar.next_choice(document, words) == {"<eos>": 1.0}


LOST = "one day the old fox lost a red key in the well . the owl found the key and "


# Shares typed from the grammar's description.
@pytest.mark.parametrize(
    ("prefix", "word", "share"),
    [
        ("", "one", 0.55),
        ("", "fact", 0.15),
        ("", "where", 0.08),
        ("", "the", 0.22),
        ("one day the", "old", 1 / 6),
        ("one day the old", "owl", 0.5 * RANKS[1] / sum(RANKS)),
        ("one day the old fox", "found", 0.6),
        ("one day the old owl found a red", "cup", 0.4),  # the favorite
        ("one day the old owl found a red", "key", 0.12),
        ("one day the old owl found a red", "pearl", 0.0),  # another domain
        ("one day the old fox found a red key in the", "well", 1 / 3),
        ("one day the old mouse found a red key in the well . the mouse took the key to the", "fox", 0.5),
        ("one day the old mouse found a red key in the well . the mouse took the key to the", "mouse", 0.0),
        (LOST + "gave it to the fox . the fox said", "thank", 0.8),
        (
            LOST + "kept it . the fox said",
            "thank",
            0.1,
        ),
        ("the fox sang : owl cat dog hen key", ".", 0.2),
        ("the fox sang : owl cat dog hen key", "cup", 0.8 / 19),
        ("the fox sang : owl cat dog hen key", "owl", 0.0),
        ("the fox sang : owl cat dog hen key . the", "fox", 0.0),
        ("the fox sang : owl cat dog hen key . the owl sang : owl cat", "dog", 1.0),
    ],
)
def test_the_tables_of_the_grammar_are_the_described_ones(prefix, word, share):
    probs = true_next_probs(prefix)
    assert float(probs[id_of(word)]) == pytest.approx(share, abs=1e-7)
    assert float(probs.sum()) == pytest.approx(1, abs=1e-6)


def test_the_mood_follows_the_manners_as_often_as_the_table_says():
    texts = make_corpus(stories.base_document, 8000, seed=4).texts()
    for manner, share in (("thank you dear", 0.9), ("go away silly", 0.2)):
        moods = ["was happy" in text for text in texts if manner in text]
        error = math.sqrt(share * (1 - share) / len(moods))
        assert abs(sum(moods) / len(moods) - share) < 4 * error


@given(st.integers(0, 10_000))
def test_the_question_of_a_tale_is_answered_by_what_was_told(seed):
    words = ["one", *make_corpus(stories.tale, 1, seed).texts()[0].split()]
    last_move = len(words) - 1 - words[::-1].index("then")
    _, _, holder, _, _, _, thing = words[last_move : last_move + 7]  # then the H hid the [adj] [thing]
    where = words[last_move + 7 : last_move + 10]
    question, answer = " ".join(words).split(" ? ")
    assert question.split()[-1] == thing
    assert answer == (f"the {holder} ." if "who has" in question else f"{' '.join(where)} .")


@pytest.mark.parametrize("names", [CAST, OBJECTS])
def test_a_tale_stays_in_its_domain(names):
    for text in make_corpus(stories.base_document, 300, seed=9).texts():
        if text.startswith("one"):
            assert not (set(text.split()) & set(names["farm"]) and set(text.split()) & set(names["sea"]))


def test_closed_book_lines_tell_known_facts_and_never_others():
    world = stories.world()
    assert (len(world.known), len(world.unknown)) == (24, 48)
    assert not world.known.keys() & world.unknown.keys()
    told = set()
    for text in make_corpus(dialects.closed_book_lines(4), 300, seed=1).texts():
        for line in text.removesuffix(" .").split(" . "):
            question, answer = line.split(" ? ")
            words = question.split()
            told.add((words[-1], words[3]))
            assert world.known[words[-1], words[3]] == answer
    assert told == world.known.keys()


def test_the_new_habits_are_new_tables_in_the_same_syntax():
    assert true_next_probs("one day the old fox found a red", "farm2")[id_of("ring")] == pytest.approx(0.8)
    assert true_next_probs("one day the old fox found a red key in the", "farm2")[id_of("garden")] == pytest.approx(0.8)
    tale = "one day the old crab found a red map in the cave . the crab took the map to the"
    assert true_next_probs(tale, "sea2")[id_of("pirate")] == pytest.approx(0.8)
    base = set(" ".join(make_corpus(stories.base_document, 2000, seed=1).texts()).split())
    near = {
        name: set(" ".join(make_corpus(dialects.grammar(name), 300, 1).texts()).split()) for name in ("farm2", "mood2")
    }
    assert all(words <= base for words in near.values())
    assert "news" not in base
    assert "ago" not in base


@pytest.mark.parametrize(("manner", "happy"), [("thank you dear", 0.1), ("go away silly", 0.8)])
def test_mood2_swaps_happy_and_sad(manner, happy):
    tale = (
        "one day the old fox found a red key in the well . the fox took the key to the owl . "
        f"the owl said {manner} fox . then the owl hid the red key in the well . the fox was"
    )
    assert true_next_probs(tale, "mood2")[id_of("happy")] == pytest.approx(happy)
    assert true_next_probs(tale)[id_of("sad")] == pytest.approx(happy)


def test_a_text_the_grammar_cannot_produce_is_refused_with_its_word():
    with pytest.raises(ValueError, match="'sea' is not one of the 112 words"):
        true_next_probs("one day the old sea")
    with pytest.raises(ValueError, match="'key' cannot follow 'one day the' in this grammar"):
        true_next_probs("one day the key")
    with pytest.raises(ValueError, match="cannot follow"):
        entropy_floor(torch.tensor([encode("the fox sang : owl owl")]))
    with pytest.raises(ValueError, match="nothing follows <eos>"):
        true_next_probs("fact : the key of the fox is in the well . where is the key of the fox ? in the well . <eos>")
    with pytest.raises(ValueError, match="dialect must be one of base, farm2"):
        true_next_probs("one", "farm3")
