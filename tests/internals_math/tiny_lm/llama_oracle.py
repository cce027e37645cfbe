"""The same weights in Hugging Face's LlamaForCausalLM: an independent implementation of the whole decoder."""

from transformers import LlamaConfig, LlamaForCausalLM

from internals_math.tiny_lm import TinyLM


def llama_of(model: TinyLM) -> LlamaForCausalLM:
    """Return LlamaForCausalLM with the model's shape and weights."""
    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=512,
            attn_implementation="eager",
        )
    )
    missing, unexpected = llama.load_state_dict(model.state_dict(), strict=False)
    assert set(missing) <= {"lm_head.weight"}  # tied to the embedding
    assert not unexpected
    llama.tie_weights()
    return llama.eval()
