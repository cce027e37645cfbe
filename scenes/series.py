"""The registry of the series: thirty topics in five families. Imports nothing heavy."""

import difflib
import importlib
from dataclasses import dataclass
from typing import Any

FAMILIES = ("Foundations", "Attention", "Compression", "Training at scale", "Alignment and reasoning")
FINISHED, CORE, PLANNED = "finished", "core", "planned"  # core: verified maths, no scene yet


@dataclass(frozen=True)
class Topic:
    """One video of the series."""

    slug: str
    title: str
    tagline: str
    family: str
    status: str = PLANNED
    module: str = ""  # of the scene, for a topic that lives outside this package

    def __post_init__(self) -> None:
        if not self.module:
            object.__setattr__(self, "module", f"scenes.{self.slug}")


TOPICS = (
    Topic(
        "attention",
        "Attention Mechanism",
        "The Query-Key-Value architecture that revolutionized deep learning.",
        "Attention",
        FINISHED,
    ),
    Topic(
        "kv_cache",
        "KV Cache",
        "Memoization of linear projections: why attention asks new questions over the same memory.",
        "Attention",
        FINISHED,
    ),
    Topic(
        "multi_query_attention",
        "Multi-Query Attention (MQA)",
        "Share a single KV head across all queries for maximum inference speed.",
        "Attention",
        FINISHED,
    ),
    Topic(
        "grouped_query_attention",
        "Grouped Query Attention (GQA)",
        "Share KV heads to reduce memory while preserving quality.",
        "Attention",
        FINISHED,
    ),
    Topic(
        "multi_latent_attention",
        "Multi-Latent Attention (MLA)",
        "DeepSeek's KV cache compression via low-rank latent projections.",
        "Attention",
        FINISHED,
    ),
    Topic(
        "sliding_window_attention",
        "Sliding Window Attention",
        "Efficient local attention that scales linearly with sequence length.",
        "Attention",
        FINISHED,
    ),
    Topic(
        "flash_attention",
        "FlashAttention",
        "Tiling, IO-complexity, and Online Softmax. How to make attention linear in memory.",
        "Attention",
        FINISHED,
    ),
    Topic(
        "paged_attention",
        "PagedAttention",
        "Virtual memory for KV cache that powers vLLM's 24x throughput.",
        "Attention",
        FINISHED,
    ),
    Topic(
        "rope",
        "RoPE (Rotary Position Embedding)",
        "Complex numbers, rotation matrices, and relative positions encoded through geometry.",
        "Attention",
        FINISHED,
    ),
    Topic(
        "speculative_decoding",
        "Speculative Decoding",
        "Verification probability, acceptance sampling, and trading compute for latency.",
        "Attention",
        FINISHED,
    ),
    Topic(
        "quantization",
        "Quantization",
        "Discretization, rounding errors, and the math of compressing model weights.",
        "Compression",
        FINISHED,
    ),
    Topic("qlora", "QLoRA", "Fine-tune 65B models on a single GPU with 4-bit quantization.", "Compression", FINISHED),
    Topic(
        "lora",
        "LoRA (Low-Rank Adaptation)",
        "Rank, subspaces, and matrix factorization explain why fine-tuning works without touching all parameters.",
        "Compression",
        FINISHED,
    ),
    Topic(
        "model_compression",
        "Model Compression",
        "Magnitude pruning, knowledge distillation, and shrinking models by 90% with minimal loss.",
        "Compression",
        CORE,
    ),
    Topic(
        "structured_pruning",
        "Structured Pruning",
        "Layer pruning, head pruning, and hardware-friendly module-level compression.",
        "Compression",
        CORE,
    ),
    Topic(
        "mixed_precision",
        "Mixed Precision Training",
        "FP16 vs BF16. Loss scaling, dynamic range, and the danger of underflow.",
        "Training at scale",
        CORE,
    ),
    Topic(
        "zero",
        "DeepSpeed ZeRO",
        "Zero Redundancy Optimizer for trillion-parameter training.",
        "Training at scale",
        CORE,
    ),
    Topic(
        "tensor_pipeline_parallelism",
        "Tensor vs Pipeline Parallelism",
        "Matrix partitioning, communication costs, and bubble time. How to scale across GPUs.",
        "Training at scale",
        CORE,
    ),
    Topic(
        "gradient_accumulation",
        "Gradient Accumulation",
        "Simulating massive batches on small RAM. Effective batch size and variance reduction.",
        "Training at scale",
        CORE,
    ),
    Topic(
        "weight_initialization",
        "Weight Initialization",
        "Variance propagation, gradient flow, and depth scaling. Why initialization makes or breaks training.",
        "Training at scale",
        CORE,
    ),
    Topic(
        "rlhf",
        "RLHF",
        "Reinforcement Learning from Human Feedback. The alignment pipeline.",
        "Alignment and reasoning",
        CORE,
    ),
    Topic(
        "ppo",
        "PPO (Proximal Policy Optimization)",
        "KL divergence, clipped objectives, and why policy updates need trust regions.",
        "Alignment and reasoning",
        CORE,
    ),
    Topic(
        "dpo",
        "Direct Preference Optimization (DPO)",
        "The elegant alternative to RLHF. Skip the reward model and RL loop entirely.",
        "Alignment and reasoning",
        CORE,
    ),
    Topic(
        "grpo",
        "GRPO (Group Relative Policy Optimization)",
        "Relative advantages, group normalization, and why baselines matter for variance reduction.",
        "Alignment and reasoning",
        CORE,
    ),
    Topic(
        "chain_of_thought",
        "Chain of Thought Reasoning",
        "Unlock reasoning by letting models think step by step.",
        "Alignment and reasoning",
        CORE,
    ),
    Topic(
        "gpt_pretraining",
        "GPT Pretraining",
        "Autoregressive language modeling, causal masks, and the next-token prediction objective.",
        "Foundations",
        CORE,
    ),
    Topic(
        "chinchilla",
        "Chinchilla Scaling Laws",
        "Power laws, compute-optimal frontiers, and why GPT-3 was massively over-parameterized.",
        "Foundations",
        CORE,
    ),
    Topic(
        "mixture_of_experts",
        "Mixture of Experts (MoE)",
        "See probability, linear algebra, gradients, and entropy come alive inside this modern architecture.",
        "Foundations",
        FINISHED,
    ),
    Topic(
        "model_merging",
        "Model Merging",
        "Combine fine-tuned models without retraining using TIES, DARE, and SLERP.",
        "Foundations",
        CORE,
    ),
    Topic(
        "rag",
        "RAG (Retrieval-Augmented Generation)",
        "Embeddings, similarity search, and conditioning. How LLMs use external knowledge.",
        "Foundations",
        FINISHED,
    ),
)


def find(slug: str) -> Topic:
    """Return a topic by its slug; dashes may stand for underscores.

    Raises:
        ValueError: unknown slug; the nearest names are suggested.
    """
    wanted = slug.strip().lower().replace("-", "_")
    by_slug = {topic.slug: topic for topic in TOPICS}
    if wanted in by_slug:
        return by_slug[wanted]
    close = difflib.get_close_matches(wanted, by_slug, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise ValueError(f"unknown topic {slug!r}; {hint}`llm-internals list` shows all {len(TOPICS)}")


def finished() -> tuple[Topic, ...]:
    """Return the topics whose videos can be rendered."""
    return tuple(topic for topic in TOPICS if topic.status == FINISHED)


def with_core() -> tuple[Topic, ...]:
    """Return the topics whose numbers can be computed."""
    return tuple(topic for topic in TOPICS if topic.status != PLANNED)


def scene_class(slug: str) -> Any:
    """Import a topic's scene file and return the TopicScene it defines.

    Raises:
        ValueError: the topic has no scene yet, or its file does not define exactly one.
    """
    from scenes.kit.topic_scene import TopicScene

    topic = find(slug)
    if topic.status != FINISHED:
        ready = ", ".join(t.slug for t in finished())
        raise ValueError(f"{topic.slug} has no scene yet ({topic.status}); finished: {ready}")
    module = importlib.import_module(topic.module)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, TopicScene) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ValueError(f"{topic.module} must define one TopicScene, it defines {len(found)}")
    return found[0]
