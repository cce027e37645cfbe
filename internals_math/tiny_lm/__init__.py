"""The one small language model whose tensors all topics show, and the story world it was trained on.

    model = tiny_lm.load("base")
    logits, records = model(torch.tensor([tiny_lm.encode(tiny_lm.PROMPT)]), record=("weights",))
"""

from internals_math.tiny_lm.checkpoints import cache_folder, committed_names, committed_path, file_hash, load, read_facts
from internals_math.tiny_lm.datasets import (
    Corpus,
    held_out,
    held_out_kind,
    long_text,
    make_corpus,
    story,
    training_corpus,
    true_next_probs,
)
from internals_math.tiny_lm.generation import generate, next_token_logits
from internals_math.tiny_lm.heads import SKILLS, FoundHead, find_head, head_ablation, head_scores
from internals_math.tiny_lm.model import ModelConfig, TinyLM, rms_norm, swiglu
from internals_math.tiny_lm.training import (
    Recipe,
    continue_training,
    copy_of,
    evaluate,
    fine_tune,
    one_thread,
    token_losses,
    train,
)
from internals_math.tiny_lm.variants import VARIANTS, get_variant, train_variant
from internals_math.tiny_lm.vocabulary import BOS, EOS, PAD, VOCAB_SIZE, encode, tokens

PROMPT = "one day the old fox found a"

__all__ = [
    "BOS", "EOS", "PAD", "PROMPT", "SKILLS", "VARIANTS", "VOCAB_SIZE", "Corpus", "FoundHead", "ModelConfig", "Recipe",
    "TinyLM", "cache_folder", "committed_names", "committed_path", "continue_training", "copy_of", "encode", "evaluate",
    "file_hash", "find_head", "fine_tune", "generate", "get_variant", "head_ablation", "head_scores", "held_out",
    "held_out_kind", "load", "long_text", "make_corpus", "next_token_logits", "one_thread", "read_facts", "rms_norm",
    "story", "swiglu", "token_losses", "tokens", "train", "train_variant", "training_corpus", "true_next_probs",
]  # fmt: skip
