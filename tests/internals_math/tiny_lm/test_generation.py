import pytest
import torch
from transformers import DynamicCache

from internals_math import tiny_lm
from internals_math.tiny_lm import TinyLM
from tests.internals_math.tiny_lm.llama_oracle import llama_of


@pytest.fixture(scope="module")
def base():
    return tiny_lm.load("base")


def test_greedy_writing_equals_that_of_llama(base):
    prompt = torch.tensor([tiny_lm.encode(tiny_lm.PROMPT)])
    theirs = llama_of(base).generate(
        prompt, max_new_tokens=52, do_sample=False, eos_token_id=tiny_lm.EOS, pad_token_id=tiny_lm.PAD
    )
    (ours,) = tiny_lm.generate(base, [tiny_lm.PROMPT], 52)
    assert ours == " ".join(tiny_lm.tokens(theirs[0, prompt.shape[1] :])).removesuffix(" <eos>")


def test_a_cache_changes_the_work_and_not_the_words(base):
    prompts = ["one day the old fox", "one day the big crab", "the owl sang : cat"]
    plain = tiny_lm.generate(base, prompts, 40)
    assert tiny_lm.generate(base, prompts, 40, cache=DynamicCache()) == plain
    assert [tiny_lm.generate(base, [prompt], 40)[0] for prompt in prompts] == plain


def test_sampling_is_decided_by_the_generator(base):
    def written(seed):
        generator = torch.Generator().manual_seed(seed)
        return tiny_lm.generate(base, [""] * 3, 64, temperature=1.0, generator=generator)

    assert written(1) == written(1) != written(2)


def test_what_is_sampled_is_as_likely_as_the_model_says(base):
    generator = torch.Generator().manual_seed(0)
    words = tiny_lm.generate(base, [tiny_lm.PROMPT] * 2000, 1, temperature=1.0, generator=generator)
    probs = tiny_lm.next_token_logits(tiny_lm.PROMPT).softmax(dim=-1)
    for word in ("red", "golden", "tiny"):
        share = float(probs[tiny_lm.encode(word)[1]])
        assert abs(words.count(word) / 2000 - share) < 4 * (share * (1 - share) / 2000) ** 0.5


def test_writing_stops_after_the_sentence_when_told_to(base):
    (text,) = tiny_lm.generate(base, [tiny_lm.PROMPT], 40, stop=".")
    assert text.endswith(" .")
    assert text.count(".") == 1


def test_the_model_predicts_almost_the_true_distribution(base):
    for prefix in (tiny_lm.PROMPT, "one day the old fox found a red", "fact : the"):
        truth = tiny_lm.true_next_probs(prefix)
        model = tiny_lm.next_token_logits(prefix).softmax(dim=-1)
        assert float((truth - model).abs().sum() / 2) < 0.05


def test_logits_can_be_asked_of_any_model():
    model = TinyLM(seed=1)
    assert not torch.equal(tiny_lm.next_token_logits("one", model), tiny_lm.next_token_logits("one"))


@pytest.mark.parametrize(
    ("prompts", "arguments", "message"),
    [
        ([], {}, "one or more prompts of equal length"),
        (["one", "one day"], {}, r"equal length, got lengths \[2, 3\]"),
        (["one"], {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (["one"], {"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        (["one"], {"stop": "!"}, "'!' is not one of the 112 words"),
    ],
)
def test_impossible_requests_are_refused(base, prompts, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_lm.generate(base, prompts, **{"max_new_tokens": 4, **arguments})
