import pytest
import torch

from internals_math import tiny_lm
from internals_math.tiny_lm import heads

SONG = "<bos> the fox sang : owl key . the cat sang : owl key . the dog sang : owl key ."
TALE = "<bos> one day the old fox found a red key in the well . the fox took the key"


def test_induction_looks_at_the_word_after_the_earlier_copy():
    words = SONG.split()
    seen = {(words[query], words[key], key) for query, key in heads.induction(words)}
    # From `owl` (which follows the colon) to `key` one verse earlier, from `key` to the full stop.
    assert seen == {("owl", "key", 6), ("key", ".", 7), ("owl", "key", 13), ("key", ".", 14)}


def test_recall_looks_from_the_place_before_a_word_to_where_it_was_said():
    words = TALE.split()
    _, recall = heads.SKILLS["object recall"]
    assert recall(words) == [(words.index("took") + 1, words.index("key"))]
    _, recall = heads.SKILLS["place recall"]
    assert recall(words) == []


def test_the_score_of_a_head_is_its_mean_weight_on_the_places():
    model = tiny_lm.load("base_seed1")
    corpus = tiny_lm.held_out_kind("song", 5)
    with torch.no_grad():
        _, seen = model(corpus.ids, record=("weights",))
    found = []
    for row, text in enumerate(corpus.texts()):
        for query, key in heads.induction(["<bos>", *text.split()]):
            found.append(seen["weights"][:, row, :, query, key])
    torch.testing.assert_close(tiny_lm.head_scores(model, "induction", 5), torch.stack(found).mean(dim=0))


def test_seed_1_has_a_crisp_induction_head_and_heads_that_recall():
    found = tiny_lm.find_heads("base_seed1")
    assert found["induction"].score > 0.8
    assert found["object recall"].score > 0.65
    assert found["adjective recall"].score > 0.6
    assert found["place recall"].score > 0.5
    assert all(head.score > 10 * head.chance for name, head in found.items() if name != "previous token")


def test_no_model_has_a_crisp_previous_token_head():
    for name in ("base", "base_seed1", "base_seed2"):
        assert tiny_lm.find_heads(name)["previous token"].score < 0.4


def test_an_untrained_model_scores_about_chance():
    model = tiny_lm.TinyLM(seed=0)
    for skill in tiny_lm.SKILLS:
        found = tiny_lm.find_head(model, skill)
        assert found.score < 3 * found.chance + 0.02


def test_the_found_head_is_the_highest_of_all():
    model = tiny_lm.load("base")
    found = tiny_lm.find_head(model, "place recall")
    scores = tiny_lm.head_scores(model, "place recall")
    assert float(scores.max()) == found.score == float(scores[found.layer, found.head])


def test_ablation_is_the_loss_with_the_heads_columns_zeroed_minus_the_loss():
    model, corpus = tiny_lm.load("base_seed1"), tiny_lm.held_out(20)
    change = tiny_lm.head_ablation(model, corpus)
    for layer, head in ((0, 1), (2, 3)):
        edited = tiny_lm.copy_of(model)
        with torch.no_grad():
            edited.model.layers[layer].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] = 0
        expected = tiny_lm.evaluate(edited, corpus) - tiny_lm.evaluate(model, corpus)
        assert float(change[layer, head]) == pytest.approx(expected, abs=1e-5)


def test_without_its_induction_head_the_model_forgets_how_to_repeat_a_song():
    model = tiny_lm.load("base_seed1")
    found = tiny_lm.find_heads("base_seed1")["induction"]
    songs = tiny_lm.held_out_kind("song", 60)
    change = tiny_lm.head_ablation(model, songs)
    assert change[found.layer, found.head] > 0.1


def test_an_unknown_skill_is_refused():
    with pytest.raises(ValueError, match=r"skill must be one of previous token, induction, .*, got 'rhyme'"):
        tiny_lm.head_scores(tiny_lm.load("base"), "rhyme")
