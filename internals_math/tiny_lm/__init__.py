"""The one small language model whose tensors all topics show, and the story world it was trained on.

    model = tiny_lm.load("base")
    logits, records = model(torch.tensor([tiny_lm.encode(tiny_lm.PROMPT)]), record=("weights",))

Documents: grammar (exact probabilities), stories, dialects, walks, fact_book; datasets makes rows of token ids of them.
Models: layers, model, training, checkpoints, variants (every checkpoint by name). What the model does: generation,
heads, report.
"""

from internals_math.tiny_lm.checkpoints import (
    cache_folder,
    committed_names,
    committed_path,
    file_hash,
    load,
    read_checkpoint,
    read_facts,
    save_checkpoint,
)
from internals_math.tiny_lm.datasets import (
    KINDS,
    PROMPT,
    Corpus,
    entropy_floor,
    held_out,
    held_out_kind,
    long_text,
    make_corpus,
    story,
    training_corpus,
    true_next_probs,
)
from internals_math.tiny_lm.dialects import DIALECTS
from internals_math.tiny_lm.fact_book import FactBook, fact_book
from internals_math.tiny_lm.generation import generate, next_token_logits
from internals_math.tiny_lm.heads import SKILLS, FoundHead, find_head, find_heads, head_ablation, head_scores
from internals_math.tiny_lm.layers import ModelConfig, rms_norm, swiglu
from internals_math.tiny_lm.model import RECORDS, TinyLM, block_matrices, forward, short_name
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
from internals_math.tiny_lm.variants import (
    VARIANTS,
    Variant,
    get_variant,
    pool_key_value_heads,
    train_variant,
)
from internals_math.tiny_lm.vocabulary import BOS, EOS, PAD, VOCAB_SIZE, encode, tokens
from internals_math.tiny_lm.walks import answer_labels, walk_accuracy, walk_corpus

__all__ = [
    "BOS", "DIALECTS", "EOS", "KINDS", "PAD", "PROMPT", "RECORDS", "SKILLS", "VARIANTS", "VOCAB_SIZE", "Corpus",
    "FactBook", "FoundHead", "ModelConfig", "Recipe", "TinyLM", "Variant", "answer_labels", "block_matrices",
    "cache_folder", "committed_names", "committed_path", "continue_training", "copy_of", "encode", "entropy_floor",
    "evaluate", "fact_book", "file_hash", "find_head", "find_heads", "fine_tune", "forward", "generate",
    "get_variant", "head_ablation", "head_scores", "held_out", "held_out_kind", "load", "long_text", "make_corpus",
    "next_token_logits", "one_thread", "pool_key_value_heads", "read_checkpoint", "read_facts", "rms_norm",
    "save_checkpoint", "short_name", "story", "swiglu", "token_losses", "tokens", "train", "train_variant",
    "training_corpus", "true_next_probs", "walk_accuracy", "walk_corpus",
]  # fmt: skip
