"""The decoder against transformers, and every argument of its forward against a plainer way to the same result."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

from internals_math import tiny_lm
from internals_math.attention import causal_mask, masked_softmax
from internals_math.next_token import next_token_loss
from internals_math.tiny_lm import ModelConfig, TinyLM
from tests.internals_math.tiny_lm.llama_oracle import llama_of

IDS = tiny_lm.held_out(6).ids[:, :40]
BLOCK_MATRICES = 7  # q, k, v, o, gate, up, down


@pytest.fixture(scope="module")
def base():
    return tiny_lm.load("base")


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# -- the whole decoder -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_llama_with_any_number_of_key_value_heads(groups, tied):
    model = TinyLM(ModelConfig(num_key_value_heads=groups, tie_word_embeddings=tied), seed=groups)
    close(model(IDS), llama_of(model)(IDS).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in tiny_lm.committed_names() if name != "mla"])  # no Llama attention
def test_committed_checkpoints_mean_the_same_in_llama(name):
    model = tiny_lm.load(name)
    llama = llama_of(model)
    # Llama rounds its rotary frequencies to float32, and trained weights blow that up: 1e-4 on logits of 20.
    close(model(IDS, inv_freq=llama.model.rotary_emb.inv_freq), llama(IDS).logits)
    close(model(IDS), llama(IDS).logits, tolerance=2e-4)


@torch.no_grad()
def test_a_sliding_window_equals_that_of_mistral():
    config = ModelConfig(num_key_value_heads=2, sliding_window=5)
    model = TinyLM(config, seed=3)
    mistral = MistralForCausalLM(
        MistralConfig(
            vocab_size=config.vocab_size,
            hidden_size=32,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0},
            sliding_window=5,
            tie_word_embeddings=True,
            attn_implementation="eager",
        )
    ).eval()
    mistral.load_state_dict(model.state_dict(), strict=False)
    mistral.tie_weights()
    close(model(IDS), mistral(IDS, use_cache=False).logits)
    assert (model(IDS) - TinyLM(replace(config, sliding_window=None), seed=3)(IDS)).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("groups", [4, 1])
@pytest.mark.parametrize("window", [None, 6])
def test_cached_and_uncached_logits_agree_at_every_step(groups, window):
    model = TinyLM(ModelConfig(num_key_value_heads=groups, sliding_window=window), seed=1)
    cache = DynamicCache()
    parts = [model(IDS[:, :9], cache=cache)] + [model(IDS[:, t : t + 1], cache=cache) for t in range(9, 20)]
    assert cache.get_seq_length() == 20
    close(torch.cat(parts, dim=1), model(IDS[:, :20]))


def test_the_model_has_the_announced_size(base):
    assert base.num_params == 43_744
    assert tiny_lm.load("draft").num_params == 16_992


def test_weights_start_with_the_announced_spread():
    model = TinyLM(ModelConfig(hidden_size=128, num_attention_heads=8, num_key_value_heads=8, intermediate_size=384))
    residual = 1 / math.sqrt(2 * 3)
    expected = {"embed_tokens": 128**-0.5, "q_proj": 128**-0.5, "o_proj": 128**-0.5 * residual}
    expected |= {"up_proj": 128**-0.5, "down_proj": 384**-0.5 * residual}
    for name, weight in model.named_parameters():
        kind = name.split(".")[-2]
        if kind in expected:
            error = expected[kind] / math.sqrt(2 * weight.numel())
            assert abs(float(weight.detach().std()) - expected[kind]) < 5 * error
        if "norm" in name:
            assert (weight == 1).all()


def test_making_a_model_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    TinyLM(seed=1)
    assert torch.equal(torch.rand(1), expected)


def test_norm_and_feed_forward_equal_torchs():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 7, 32, generator=generator), torch.randn(32, generator=generator)
    close(tiny_lm.rms_norm(x, weight, 1e-5), nn.functional.rms_norm(x, (32,), weight, eps=1e-5))
    mlp = llama_of(TinyLM(seed=2)).model.layers[0].mlp
    ours = tiny_lm.swiglu(x, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    close(ours, mlp(x))


# -- the arguments of forward ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_given_parts_that_do_the_usual_change_nothing():
    model = TinyLM(seed=1)

    def usual_attention(query, key, value, mask, scale, layer_idx):
        return nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)

    usual = model(IDS)
    length = IDS.shape[1]
    for arguments in (
        {"attention_fn": usual_attention},
        {"linear_fn": lambda name, x, weight: nn.functional.linear(x, model.state_dict()[name])},
        {"mask": causal_mask(length)},
        {"mask": [causal_mask(length)] * 3},
        {"head_mask": torch.ones(3, 4)},
        {"channel_mask": torch.ones(3, 96)},
        {"position_ids": torch.arange(length)},
        {"position_ids": torch.arange(length).expand(len(IDS), -1)},
        {"inv_freq": 100.0 ** -(torch.arange(0, 8, 2).double() / 8)},
    ):
        close(model(IDS, **arguments), usual)
    assert torch.equal(model(inputs_embeds=model.model.embed_tokens(IDS)), usual)


@torch.no_grad()
def test_every_block_matrix_passes_through_linear_fn_once(base):
    seen = []

    def linear_fn(name, x, weight):
        seen.append(name)
        return x @ weight.T

    base(IDS, linear_fn=linear_fn)
    matrices = [name for name in base.state_dict() if ".layers." in name and "norm" not in name]
    assert sorted(seen) == sorted(matrices)
    assert len(seen) == 3 * BLOCK_MATRICES


def edited(base, edit):
    """Return the logits of a copy whose state dict `edit` has changed in place."""
    state = {name: weight.clone() for name, weight in base.state_dict().items()}
    edit(state)
    return tiny_lm.forward(base, state, IDS)


@torch.no_grad()
def test_a_head_switched_off_is_a_head_whose_output_columns_are_zero(base):
    mask = torch.ones(3, 4)
    mask[1, 2] = 0

    def edit(state):
        state["model.layers.1.self_attn.o_proj.weight"][:, 16:24] = 0

    close(base(IDS, head_mask=mask), edited(base, edit))


@torch.no_grad()
def test_a_channel_switched_off_is_a_channel_whose_output_column_is_zero(base):
    mask = torch.ones(3, 96)
    mask[2, 40] = 0

    def edit(state):
        state["model.layers.2.mlp.down_proj.weight"][:, 40] = 0

    close(base(IDS, channel_mask=mask), edited(base, edit))


@torch.no_grad()
def test_a_skipped_layer_is_a_layer_that_adds_nothing(base):
    def edit(state):
        state["model.layers.1.self_attn.o_proj.weight"].zero_()
        state["model.layers.1.mlp.down_proj.weight"].zero_()

    close(base(IDS, skip_layers=[1]), edited(base, edit))


def test_gradients_reach_the_gates_and_the_embeddings(base):
    gates = torch.ones(3, 4, requires_grad=True)
    embeds = base.model.embed_tokens(IDS).detach().requires_grad_(True)
    loss = next_token_loss(base(inputs_embeds=embeds, head_mask=gates), IDS)
    for gradient in torch.autograd.grad(loss, (gates, embeds)):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


@torch.no_grad()
def test_only_distances_matter_when_all_positions_shift(base):
    shifted = base(IDS, position_ids=torch.arange(IDS.shape[1]) + 7.5)
    torch.testing.assert_close(shifted, base(IDS), atol=1e-3, rtol=1e-4)
    stretched = base(IDS, position_ids=2 * torch.arange(IDS.shape[1]))
    assert (stretched - base(IDS)).abs().max() > 1


@torch.no_grad()
def test_a_row_of_positions_counts_for_its_own_row(base):
    positions = torch.stack([torch.arange(40), 2 * torch.arange(40)])
    both = base(IDS[:1].expand(2, -1), position_ids=positions)
    close(both[1], base(IDS[:1], position_ids=positions[1])[0])


@torch.no_grad()
def test_no_position_sees_the_future_unless_the_mask_lets_it(base):
    changed = IDS.clone()
    changed[:, 20:] = tiny_lm.EOS
    assert torch.equal(base(IDS)[:, :20], base(changed)[:, :20])
    everything = torch.ones(40, 40, dtype=torch.bool)
    assert (base(IDS, mask=everything)[:, :20] - base(changed, mask=everything)[:, :20]).abs().max() > 0.1


def test_per_example_gradients_from_vmap_equal_a_loop(base):
    state = {name: weight.detach() for name, weight in base.named_parameters()}

    def loss_of(weights, row):
        return next_token_loss(tiny_lm.forward(base, weights, row[None], attention_fn=plain_attention), row[None])

    def plain_attention(query, key, value, mask, scale, layer_idx):
        return torch.softmax((query @ key.mT * scale).masked_fill(~mask, -math.inf), dim=-1) @ value

    # next_token_loss asks whether any label counts, which vmap cannot: the same sum without that question
    def mean_surprisal(weights, row):
        logits = tiny_lm.forward(base, weights, row[None], attention_fn=plain_attention)[0, :-1]
        return nn.functional.cross_entropy(logits, row[1:])

    together = torch.func.vmap(torch.func.grad(mean_surprisal), in_dims=(None, 0))(state, IDS)
    name = "model.layers.1.mlp.up_proj.weight"
    for index, row in enumerate(IDS):
        close(together[name][index], torch.func.grad(loss_of)(state, row)[name])


# -- records -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_records_have_the_announced_shapes_and_fit_together(base):
    model = TinyLM(ModelConfig(num_key_value_heads=2), seed=4)
    logits, seen = model(IDS, record=tiny_lm.RECORDS)
    close(logits, model(IDS))
    shapes = {name: tuple(part.shape) for name, part in seen.items() if name != "linear_inputs"}
    assert shapes == {
        "normed": (3, 6, 40, 32),
        "q": (3, 6, 4, 40, 8),
        "k": (3, 6, 2, 40, 8),
        "v": (3, 6, 2, 40, 8),
        "q_rot": (3, 6, 4, 40, 8),
        "k_rot": (3, 6, 2, 40, 8),
        "scores": (3, 6, 4, 40, 40),
        "weights": (3, 6, 4, 40, 40),
        "head_outputs": (3, 6, 4, 40, 32),
        "residual": (4, 6, 40, 32),
    }
    close(masked_softmax(seen["scores"], causal_mask(40)), seen["weights"])
    keys = seen["k_rot"].repeat_interleave(2, dim=2)
    close(seen["q_rot"] @ keys.mT / math.sqrt(8), seen["scores"])
    names = [name for name in model.state_dict() if ".layers." in name and "norm" not in name]
    assert sorted(seen["linear_inputs"]) == sorted(names)
    layer = model.model.layers[1]
    feed_forward_input = seen["linear_inputs"]["model.layers.1.mlp.up_proj.weight"]
    attended = seen["residual"][1] + seen["head_outputs"][1].sum(dim=1)
    close(tiny_lm.rms_norm(attended, layer.post_attention_layernorm.weight, 1e-5), feed_forward_input)
    mlp = layer.mlp
    added = tiny_lm.swiglu(feed_forward_input, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    close(attended + added, seen["residual"][2])


def test_gradients_can_be_taken_with_respect_to_recorded_inputs(base):
    model = TinyLM(seed=1)
    logits, seen = model(IDS, record=("linear_inputs",))
    inputs = seen["linear_inputs"]["model.layers.0.mlp.down_proj.weight"]
    (gradient,) = torch.autograd.grad(next_token_loss(logits, IDS), inputs)
    assert gradient.shape == (6, 40, 96)
    assert gradient.abs().max() > 0


@torch.no_grad()
def test_with_a_cache_the_recorded_keys_include_the_cached_ones(base):
    cache = DynamicCache()
    base(IDS[:, :5], cache=cache)
    _, seen = base(IDS[:, 5:6], cache=cache, record=("k", "k_rot", "weights"))
    assert seen["k"].shape == (3, 6, 4, 1, 8)
    assert seen["k_rot"].shape == (3, 6, 4, 6, 8)
    assert seen["weights"].shape == (3, 6, 4, 1, 6)


# -- other techniques in the layers ------------------------------------------------------------------------------------


class Averaging(nn.Module):
    """Attention that looks at all visible positions alike."""

    def __init__(self, config):
        super().__init__()
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, *, layer_idx, position_ids, rotary, cache, mask):
        assert rotary[0].shape == (x.shape[1], 8)
        assert position_ids.tolist() == list(range(x.shape[1]))
        return self.out(x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1)[:, None])


class Bilinear(nn.Module):
    """A feed-forward of another kind."""

    def __init__(self, config):
        super().__init__()
        self.left, self.right = (nn.Linear(config.hidden_size, config.hidden_size, bias=False) for _ in range(2))

    def forward(self, x):
        return self.left(x) * self.right(x)


def test_other_attention_and_feed_forward_modules_can_take_their_places():
    model = TinyLM(attention=Averaging, feed_forward=Bilinear, seed=1)
    assert model.num_params == 112 * 32 + 3 * (32 * 32 + 2 * 32 * 32 + 2 * 32) + 32
    _, seen = model(IDS, record=("residual", "normed"))
    assert seen["normed"].shape == (3, 6, 40, 32)
    next_token_loss(model(IDS), IDS).backward()
    assert all(weight.grad is not None for weight in model.parameters())
    with pytest.raises(ValueError, match="no layer of this call computes weights"):
        model(IDS, record=("weights",))


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 30}, r"hidden_size \(30\) must be divisible by num_attention_heads \(4\)"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) must be divisible by num_key_value_heads \(3\)"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be at least 1, got 0"),
        ({"sliding_window": 0}, "sliding_window must be at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 0"),
    ],
)
def test_an_impossible_shape_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(6, 40, 32)}, "either input_ids or inputs_embeds"),
        ({"input_ids": torch.tensor([[112]])}, r"input_ids must be in 0\.\.111"),
        ({"input_ids": IDS, "skip_layers": [3]}, r"skip_layers must be in 0\.\.2, got \[3\]"),
        ({"input_ids": IDS, "record": ("keys",)}, "record must be out of normed, q, .*, got keys"),
        (
            {"input_ids": IDS, "record": ("weights",), "attention_fn": lambda q, k, v, mask, scale, layer: q},
            "no layer of this call computes weights",
        ),
    ],
)
def test_an_impossible_call_is_refused(base, arguments, message):
    with pytest.raises(ValueError, match=message):
        base(**arguments)
