import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from internals_math.model_shapes import (
    PRESETS,
    ModelShape,
    activation_bytes_per_layer,
    active_parameter_count,
    parameter_count,
    preset,
)

FAMILIES = {
    "llama-2-7b": (LlamaConfig, LlamaForCausalLM),
    "llama-2-13b": (LlamaConfig, LlamaForCausalLM),
    "llama-2-70b": (LlamaConfig, LlamaForCausalLM),
    "llama-3-8b": (LlamaConfig, LlamaForCausalLM),
    "deepseek-67b": (LlamaConfig, LlamaForCausalLM),
    "deepseek-v2": (DeepseekV2Config, DeepseekV2ForCausalLM),
    "deepseek-v2-lite": (DeepseekV2Config, DeepseekV2ForCausalLM),
    "mistral-7b": (MistralConfig, MistralForCausalLM),
    "mixtral-8x7b": (MixtralConfig, MixtralForCausalLM),
    "olmoe-1b-7b": (OlmoeConfig, OlmoeForCausalLM),
    "qwen3-30b-a3b": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "opt-13b": (OPTConfig, OPTForCausalLM),
    "opt-66b": (OPTConfig, OPTForCausalLM),
    "opt-175b": (OPTConfig, OPTForCausalLM),
    "gpt-2": (GPT2Config, GPT2LMHeadModel),
    "gpt-2-medium": (GPT2Config, GPT2LMHeadModel),
    "gpt-2-large": (GPT2Config, GPT2LMHeadModel),
    "gpt-2-xl": (GPT2Config, GPT2LMHeadModel),
    "gpt-3": (GPT2Config, GPT2LMHeadModel),
}
NOT_IN_TRANSFORMERS = {"palm-540b"}


def options(shape):
    """The shape in the words of a transformers config; each family takes the words it knows."""
    words = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "moe_intermediate_size": shape.intermediate_size,
        "ffn_dim": shape.intermediate_size,
        "word_embed_proj_dim": shape.hidden_size,
        "num_experts": shape.num_experts,
        "num_local_experts": shape.num_experts,
        "num_experts_per_tok": shape.num_experts_per_tok,
        "tie_word_embeddings": shape.tied,
        "n_positions": shape.num_positions,
    }
    if shape.latent is not None:
        words |= {
            **vars(shape.latent),
            "head_dim": shape.latent.qk_rope_head_dim,
            "intermediate_size": shape.dense_intermediate_size,
            "n_routed_experts": shape.num_experts,
            "n_shared_experts": shape.num_shared_experts,
            "first_k_dense_replace": shape.num_dense_layers,
        }
    return words


@pytest.mark.parametrize("name", FAMILIES)
def test_the_number_of_weights_is_that_of_the_model_in_transformers(name):
    config_class, model_class = FAMILIES[name]
    with torch.device("meta"):  # shapes without memory
        model = model_class(config_class(**options(preset(name))))
    assert parameter_count(preset(name)) == model.num_parameters()


def test_every_preset_has_an_oracle_or_is_known_to_have_none():
    assert set(PRESETS) == set(FAMILIES) | NOT_IN_TRANSFORMERS


@given(st.integers(1, 8), st.integers(1, 8))
def test_only_the_chosen_experts_are_active(experts, chosen):
    chosen = min(chosen, experts)
    shape = ModelShape("m", 2, 8, 2, 1, 4, 6, 10, num_experts=experts, num_experts_per_tok=chosen)
    idle = 2 * (experts - chosen) * 3 * 8 * 6  # layers, experts, matrices of 8 x 6
    assert parameter_count(shape) - active_parameter_count(shape) == idle


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from(["none", "selective", "full"]))
def test_one_rank_of_a_tensor_parallel_layer_keeps_the_same_as_no_parallelism(ranks, recompute):
    def kept(t, mode):
        return activation_bytes_per_layer(128, 4, 64, 8, t, mode, recompute=recompute)

    assert kept(1, "tensor") == kept(1, "tensor+sequence") == kept(1, "none")
    assert kept(ranks, "tensor+sequence") <= kept(ranks, "tensor") <= kept(1, "none")
    if recompute != "full":
        assert ranks * kept(ranks, "tensor+sequence") == kept(1, "none")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preset("llama-9"), "model must be one of llama-2-7b, .*, got 'llama-9'"),
        (lambda: ModelShape("m", 0, 8, 2, 1, 4, 6, 10), "num_hidden_layers must be at least 1, got 0"),
        (lambda: ModelShape("m", 1, 8, 2, 0, 4, 6, 10), "num_key_value_heads must be at least 1, got 0"),
        (lambda: ModelShape("m", 1, 8, 12, 5, 4, 6, 10), r"num_attention_heads \(12\) must be divisible .*\(5\)"),
        (lambda: ModelShape("m", 1, 8, 2, 1, 4, 6, 10, num_experts_per_tok=2), r"at most num_experts \(1\), got 2"),
        (lambda: activation_bytes_per_layer(0, 1, 8, 2), "sizes must be at least 1"),
        (
            lambda: activation_bytes_per_layer(1, 1, 8, 2, 4),
            r"num_attention_heads \(2\) and .* by tensor_parallel \(4\)",
        ),
        (lambda: activation_bytes_per_layer(1, 1, 8, 2, mode="zero"), "mode must be none, tensor or .*, got 'zero'"),
        (lambda: activation_bytes_per_layer(1, 1, 8, 2, recompute="some"), "recompute must be none, .*, got 'some'"),
    ],
)
def test_wrong_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
