"""The runs behind the paged attention video: the tiny LM served from blocks, and a large server simulated."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import progress, tiny_lm
from internals_math.attention import scaled_dot_product_attention
from internals_math.kv_cache import greedy_generate, kv_cache_bytes_per_token
from internals_math.model_shapes import preset
from internals_math.next_token import sample_token
from internals_math.paged_attention import (
    MAX_MODEL_LEN,
    SAMPLE_LEN,
    SHOWN_AT_ONCE,
    Config,
    Events,
    ModelSlots,
    Partials,
    Quoted,
    Serving,
    paged_attention,
)
from internals_math.paged_blocks import BlockAllocator, BlockTable, CopyOp, PagedKVCache, Slot
from internals_math.paged_serving import POLICIES, USAGE, Holding, Request, ServingTrace, max_kv_slots, simulate_serving
from internals_math.tiny_lm.vocabulary import id_of

NAMES = "ABCDEFGHIJKL"
ANSWER_LEN = 16  # tokens after which an answer without a full stop ends
FULL_STOP = id_of(".")
SHARED_PROMPT = "one day the old"  # with <bos> 5 tokens: blocks of 4 leave room in the last one
NO_COPY = CopyOp(-1, -1)
STATES = ("free", "token", "reserved", "never used", "rounding")
# ShareGPT, as the paper measured it (its figure 11), on the 13B model of its Table 1.
MEAN_PROMPT, MEAN_OUTPUT = 161.31, 337.99
SPREAD = 0.9  # of the logarithm of a length; the paper shows the histograms, not the parameter
LARGE_REQUESTS, LARGE_SLOTS, LARGE_MAX_LEN, LARGE_BLOCK = 400, 15_728, 2048, 16
SWEEP_REQUESTS, SWEEP = 100, (1, 2, 4, 8, 16, 32, 64, 128, 256)
CHART_POINTS = 120


class PagedView:
    """What the decoder sees of a pool: it writes new tokens to their slots and attends through the block table."""

    def __init__(self, pool: PagedKVCache, table: BlockTable, slots: Sequence[Slot]) -> None:
        self.pool, self.table, self.slots = pool, table, slots
        self.seen: dict[int, tuple[Tensor, Partials]] = {}  # layer -> queries (T, H, d) and what became of them

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens before the new ones."""
        return self.table.length - len(self.slots)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write the new keys and values (1, G, T, d) into the pool; `attend` finds them there."""
        self.pool.write(layer_idx, self.slots, key_states[0], value_states[0])
        return key_states, value_states

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, layer: int) -> Tensor:
        """Return the attention of every new token (1, H, T, d); each sees one token more than the one before."""
        queries = query[0].transpose(0, 1)  # (T, H, d)
        context_lens = torch.arange(self.get_seq_length(), self.table.length) + 1
        tables = torch.tensor(self.table.physical_blocks).expand(len(queries), -1)
        output, partials = paged_attention(
            queries, self.pool.keys[layer], self.pool.values[layer], tables, context_lens, scale=scale
        )
        self.seen[layer] = (queries, partials)
        return output.transpose(0, 1)[None]


@torch.no_grad()
def read_tokens(model: tiny_lm.TinyLM, ids: Sequence[int], view: PagedView) -> Float[Tensor, "T V"]:
    """Return the logits after each of the newest tokens, whose slots `view` knows."""
    return model(torch.tensor([list(ids)]), cache=view, attention_fn=view.attend)[0]


def pool_for(model: tiny_lm.TinyLM, config: Config) -> PagedKVCache:
    """Return an empty pool (all NaN) for a model."""
    shape = model.config
    return PagedKVCache(
        shape.num_hidden_layers, config.num_blocks, config.block_size, shape.num_key_value_heads, shape.head_dim
    )


# -- six texts of the tiny LM ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Answer:
    """What the model wrote with a contiguous cache: all ids, and the logits of each step (length of the answer)."""

    ids: list[int]
    logits: Float[Tensor, "steps V"]
    request: Request


@dataclass(frozen=True, eq=False)
class DecodeStep:
    """One query on its way through its blocks."""

    queries: Float[Tensor, "1 H d"]
    partials: Partials
    blocks: list[int]
    length: int
    keys: Float[Tensor, "J B d"]  # of the shown head, as they lie in the pool
    values: Float[Tensor, "J B d"]
    reference: Float[Tensor, " d"]  # from all keys side by side


@dataclass(frozen=True, eq=False)
class Run:
    """The paged run of all requests, and its distance from the contiguous one."""

    answers: list[Answer]
    serving: ServingTrace
    texts: list[list[int]]
    max_abs_diff: float
    steps_compared: int
    decode: DecodeStep


def prompts(count: int, seed: int) -> list[list[int]]:
    """Return the ids of the series prompt and of the first words of other held-out documents."""
    rng = random.Random(seed)
    documents = tiny_lm.held_out().texts()
    chosen = rng.sample(range(len(documents)), count - 1)
    cut = [" ".join(documents[index].split()[: rng.randint(4, 9)]) for index in chosen]
    return [tiny_lm.encode(text) for text in (tiny_lm.PROMPT, *cut)]


def answer(model: tiny_lm.TinyLM, prompt: Sequence[int]) -> Answer:
    """Let the model go on to the next full stop, with an ordinary cache."""
    written = greedy_generate(model, torch.tensor([list(prompt)]), ANSWER_LEN, use_cache=True)
    ids = written.sequences[0].tolist()
    output = ids[len(prompt) :]
    length = output.index(FULL_STOP) + 1 if FULL_STOP in output else ANSWER_LEN
    return Answer(ids[: len(prompt) + length], written.step_logits[:length, 0], Request(len(prompt), length))


def serve(config: Config, max_num_seqs: int | None = SHOWN_AT_ONCE) -> Run:
    """Serve the requests from blocks, each step computed through the block tables.

    Raises:
        ArithmeticError: a text differs from what the contiguous cache gave.
    """
    model = tiny_lm.load("base")
    answers = [answer(model, prompt) for prompt in prompts(config.num_requests, config.seed)]
    texts = [a.ids[: a.request.prompt_len] for a in answers]
    pool = pool_for(model, config)
    differences: list[float] = []
    decode: list[DecodeStep] = []

    def store(sequence: int, table: BlockTable, slots: list[Slot]) -> None:
        view, text, expected = PagedView(pool, table, slots), texts[sequence], answers[sequence]
        logits = read_tokens(model, text[table.length - len(slots) : table.length], view)[-1]
        step = table.length - expected.request.prompt_len
        if step < expected.request.output_len:
            differences.append(float((logits - expected.logits[step]).abs().max()))
            if table.length == len(text):
                text.append(int(logits.argmax()))
        elif sequence == 0:
            decode.append(_decode_step(view, config))

    serving = simulate_serving(
        [a.request for a in answers],
        "paged",
        num_slots=config.num_blocks * config.block_size,
        block_size=config.block_size,
        max_model_len=MAX_MODEL_LEN,
        order="shuffled",
        seed=config.seed,
        max_num_seqs=max_num_seqs,
        record=True,
        store=store,
    )
    if texts != [a.ids for a in answers]:
        raise ArithmeticError("generation with a paged and with a contiguous cache chose different tokens")
    return Run(answers, serving, texts, max(differences), len(differences), decode[-1])


def _decode_step(view: PagedView, config: Config) -> DecodeStep:
    queries, partials = view.seen[config.layer]
    blocks, length = list(view.table.physical_blocks), view.table.length
    group = config.head * view.pool.keys.shape[3] // queries.shape[1]
    keys, values = (store[config.layer, blocks, :, group].clone() for store in (view.pool.keys, view.pool.values))
    hidden = torch.arange(keys.shape[0] * keys.shape[1]).view(keys.shape[:2]) >= length  # left over from others
    key, value = view.pool.gather(config.layer, blocks, length)
    reference, _ = scaled_dot_product_attention(queries.transpose(0, 1)[None], key[None], value[None])  # (1, H, 1, d)
    return DecodeStep(
        queries=queries,
        partials=partials,
        blocks=blocks,
        length=length,
        keys=keys.masked_fill(hidden[..., None], math.nan),
        values=values.masked_fill(hidden[..., None], math.nan),
        reference=reference[0, config.head, 0],
    )


# -- fields of the trace -----------------------------------------------------------------------------------------------


def request_fields(run: Run) -> dict[str, Any]:
    """Return the texts."""
    names = tuple(NAMES[: len(run.texts)])
    return {
        "request_names": names,
        "request_tokens": {name: tiny_lm.tokens(ids) for name, ids in zip(names, run.texts, strict=True)},
        "prompt_len": torch.tensor([a.request.prompt_len for a in run.answers]),
        "output_len": torch.tensor([a.request.output_len for a in run.answers]),
        "max_model_len": MAX_MODEL_LEN,
        "max_abs_diff_logits": run.max_abs_diff,
        "steps_compared": run.steps_compared,
    }


def contiguous_fields(run: Run, config: Config) -> dict[str, Any]:
    """Return what every slot of the memory is used for under the chosen policy."""
    owner, state = slot_map(run, _serve_ours(run, config, config.policy), config)
    return {
        "num_slots": config.num_blocks * config.block_size,
        "slot_states": STATES,
        "contiguous_owner": owner,
        "contiguous_state": state,
    }


def slot_map(run: Run, served: ServingTrace, config: Config) -> tuple[Int[Tensor, "K slots"], Int[Tensor, "K slots"]]:
    """Return whose every slot is (-1: nobody's), and what it is used for (an index into STATES), after every tick."""
    owner = torch.full((len(served.holdings), config.num_blocks * config.block_size), -1)
    state = torch.zeros_like(owner)
    for tick, holdings in enumerate(served.holdings):
        for sequence, held in holdings.items():
            slots = slots_of(held, config.block_size)
            owner[tick, slots] = sequence
            state[tick, slots] = states_of(held, run.answers[sequence].request.total)
    return owner, state


def slots_of(held: Holding, block_size: int) -> list[int]:
    """Return every slot that a request takes, in the order in which it fills them."""
    each = held.chunk if len(held.starts) == 1 else block_size
    return [start + offset for start in held.starts for offset in range(each)]


def states_of(held: Holding, total: int) -> Int[Tensor, " slots"]:
    """Return the state (an index into STATES) of each slot of a holding."""
    place = torch.arange(held.chunk)
    state = torch.full_like(place, STATES.index("rounding"))
    for name, end in (("never used", held.allocated), ("reserved", min(held.allocated, total)), ("token", held.stored)):
        state[place < end] = STATES.index(name)
    return state


def paged_fields(run: Run, config: Config) -> dict[str, Any]:
    """Return tables and pool of the drawn run after every tick, and its events."""
    holdings, size = run.serving.holdings, config.block_size
    tables = [{name: [start // size for start in held.starts] for name, held in now.items()} for now in holdings]
    lengths = [{name: held.stored for name, held in now.items()} for now in holdings]
    events = run.serving.events
    stored = [0] * len(run.texts)  # tokens in memory so far, to know which word an event stores
    words = []
    for event in events:
        if event.kind == "admit":
            stored[event.sequence] = 0
        is_token = event.kind == "append"
        words.append(tiny_lm.tokens([run.texts[event.sequence][stored[event.sequence]]])[0] if is_token else "")
        stored[event.sequence] += is_token
    state = pool_state(tables, lengths, len(run.texts), config)
    return {
        "events": Events(
            tick=torch.tensor([event.tick for event in events]),
            kind=tuple(event.kind for event in events),
            sequence=torch.tensor([event.sequence for event in events]),
            logical=torch.tensor([event.logical for event in events]),
            physical=torch.tensor([event.physical for event in events]),
            offset=torch.tensor([event.offset for event in events]),
            word=tuple(words),
        ),
        "block_tables": state["tables"],
        "table_filled": state["table_filled"],
        "sequence_length": state["lengths"],
        "physical_owner": state["owner"],
        "filled": state["filled"],
        "fill_share": state["filled"] / size,
        "ref_counts": state["ref_counts"],
        "blocks_free": (state["ref_counts"] == 0).sum(dim=1),
        "block_ids": torch.arange(config.num_blocks),
        "slot_owner": state["slot_owner"],
        "slot_state": slot_map(run, run.serving, config)[1],
        "slot_usage": run.serving.usage,
        "shown_at_once": SHOWN_AT_ONCE,
    }


def pool_state(
    tables: Sequence[Mapping[int, Sequence[int]]], lengths: Sequence[Mapping[int, int]], count: int, config: Config
) -> dict[str, Tensor]:
    """Return tables and pool as tensors, one row for each moment.

    Args:
        tables: physical blocks by sequence, at each moment.
        lengths: stored tokens by sequence.
        count: number of sequences; a block of several has `count` as its owner.
    """
    moments, size = len(tables), config.block_size
    widest = max(len(blocks) for now in tables for blocks in now.values())
    table = torch.full((moments, count, widest), math.nan)
    table_filled = torch.full_like(table, math.nan)
    length = torch.zeros(moments, count, dtype=torch.long)
    owner = torch.full((moments, config.num_blocks), -1)
    filled, ref_counts = torch.zeros_like(owner), torch.zeros_like(owner)
    for moment, now in enumerate(tables):
        for sequence, blocks in now.items():
            length[moment, sequence] = lengths[moment][sequence]
            for logical, block in enumerate(blocks):
                in_block = min(size, lengths[moment][sequence] - logical * size)
                table[moment, sequence, logical], table_filled[moment, sequence, logical] = block, in_block
                owner[moment, block] = sequence if owner[moment, block] == -1 else count
                filled[moment, block] = max(in_block, int(filled[moment, block]))
                ref_counts[moment, block] += 1
    return {
        "tables": table,
        "table_filled": table_filled,
        "lengths": length,
        "owner": owner,
        "filled": filled,
        "ref_counts": ref_counts,
        "slot_owner": owner.repeat_interleave(size, dim=1),
        "slot_filled": (torch.arange(size) < filled[..., None]).long().flatten(1),
    }


def decode_fields(run: Run, config: Config) -> dict[str, Any]:
    """Return how the last query of the first request went from block to block."""
    step, head = run.decode, config.head
    parts = step.partials
    scores = parts.scores[0, head]
    running_max, running_sum = parts.running_max[0, head], parts.running_sum[0, head]
    running_output = parts.running_acc[0, head] / running_sum[:, None]
    hidden = scores == -math.inf
    weights = torch.exp(scores - running_max[-1]) / running_sum[-1]
    return {
        "decode_tokens": tiny_lm.tokens(run.texts[0][: step.length]),
        "decode_blocks": torch.tensor(step.blocks),
        "query": step.queries[0, head],
        "keys": step.keys,
        "values": step.values,
        "block_scores": scores.masked_fill(hidden, math.nan),
        "block_weights": weights.masked_fill(hidden, math.nan),
        "block_max": parts.block_max[0, head],
        "block_sum": parts.block_sum[0, head],
        "running_max": running_max,
        "running_sum": running_sum,
        "running_output": running_output,
        "output": running_output[-1],
        "reference_output": step.reference,
        "max_abs_diff": float((running_output[-1] - step.reference).abs().max()),
    }


# -- samples that share a prompt ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Frame:
    """The moment after one token was stored."""

    writer: int
    word: str
    copy: CopyOp
    tables: dict[int, list[int]]
    lengths: dict[int, int]


@dataclass(frozen=True, eq=False)
class SharedRun:
    """Samples of one prompt from one pool."""

    prompt: list[int]
    answers: list[list[int]]
    frames: list[Frame]
    max_abs_diff: float


def share_prompt(config: Config, prompt: Sequence[int]) -> SharedRun:
    """Sample answers to one prompt; their tables start as forks of one table, and part by copy-on-write."""
    model = tiny_lm.load("base")
    generator = torch.Generator().manual_seed(config.seed)
    pool = pool_for(model, config)
    allocator = BlockAllocator(config.num_blocks, config.block_size, order="shuffled", seed=config.seed)
    tables = [BlockTable(allocator)]
    logits = [read_tokens(model, prompt, PagedView(pool, tables[0], tables[0].append_slots(len(prompt))))[-1]]
    texts = [list(prompt)]
    frames: list[Frame] = []

    def keep(writer: int = -1, word: str = "", copy: CopyOp = NO_COPY) -> None:
        blocks = {index: list(table.physical_blocks) for index, table in enumerate(tables)}
        frames.append(Frame(writer, word, copy, blocks, {index: table.length for index, table in enumerate(tables)}))

    keep()
    for _ in range(config.num_samples - 1):
        tables.append(tables[0].fork())
        logits.append(logits[0])
        texts.append(list(prompt))
    keep()
    seen: list[list[Tensor]] = [[] for _ in tables]  # logits that each token was drawn from
    while writing := [i for i, text in enumerate(texts) if text[-1] != FULL_STOP and len(text) < SAMPLE_LEN]:
        for index in writing:
            seen[index].append(logits[index])
            token = int(sample_token(logits[index][None], 1.0, generator)[0])
            slots = tables[index].append_slots(1)
            copies = tables[index].take_copy_ops()
            pool.copy_blocks(copies)
            logits[index] = read_tokens(model, [token], PagedView(pool, tables[index], slots))[-1]
            texts[index].append(token)
            keep(index, tiny_lm.tokens([token])[0], *copies)
    with torch.no_grad():
        whole = [model(torch.tensor([text]))[0, len(prompt) - 1 : -1] for text in texts]
    difference = max(float((torch.stack(a) - b).abs().max()) for a, b in zip(seen, whole, strict=True))
    return SharedRun(list(prompt), [text[len(prompt) :] for text in texts], frames, difference)


def share_fields(config: Config) -> dict[str, Any]:
    """Return the samples, and tables and pool after every stored token."""
    run = share_prompt(config, tiny_lm.encode(SHARED_PROMPT))
    frames = run.frames
    state = pool_state([f.tables for f in frames], [f.lengths for f in frames], config.num_samples, config)
    return {
        "share_prompt": tiny_lm.tokens(run.prompt),
        "share_tokens": {NAMES[index]: tiny_lm.tokens(ids) for index, ids in enumerate(run.answers)},
        "share_writer": torch.tensor([frame.writer for frame in frames]),
        "share_word": tuple(frame.word for frame in frames),
        "share_copy_from": torch.tensor([frame.copy.src for frame in frames]),
        "share_copy_to": torch.tensor([frame.copy.dst for frame in frames]),
        "share_tables": state["tables"],
        "share_filled": state["table_filled"],
        "share_fill_share": state["filled"] / config.block_size,
        "share_ref_counts": state["ref_counts"],
        "share_owner": state["owner"],
        "share_slot_owner": state["slot_owner"],
        "share_slot_filled": state["slot_filled"],
        "share_blocks_used": (state["ref_counts"] > 0).sum(dim=1),
        "share_blocks_alone": state["ref_counts"].sum(dim=1),
        "share_copies": sum(frame.copy.src >= 0 for frame in frames),
        "share_max_abs_diff": run.max_abs_diff,
    }


# -- what fits ---------------------------------------------------------------------------------------------------------


def _serve_ours(run: Run, config: Config, policy: str) -> ServingTrace:
    """Serve the tiny LM's requests under a policy, as many at once as fit."""
    return simulate_serving(
        [a.request for a in run.answers],
        policy,
        num_slots=config.num_blocks * config.block_size,
        block_size=config.block_size,
        max_model_len=MAX_MODEL_LEN,
        order="shuffled",
        seed=config.seed,
        record=True,
    )


def serving_fields(run: Run, config: Config) -> dict[str, Any]:
    """Return the tiny LM's requests under all four policies."""
    served = {policy: _serve_ours(run, config, policy) for policy in POLICIES}
    return {
        "usage_names": USAGE,
        "usage": {policy: one.usage for policy, one in served.items()},
        "running": {policy: one.running for policy, one in served.items()},
        "waiting": {policy: one.waiting for policy, one in served.items()},
        "serving": serving_table(served),
    }


def serving_table(served: Mapping[str, ServingTrace]) -> Serving:
    """Return the means of several policies, the first of which is the one to compare with."""
    usage = torch.stack([one.mean_usage for one in served.values()]).float()
    running = torch.tensor([one.mean_running for one in served.values()])
    return Serving(
        policy=tuple(served),
        mean_tokens=usage[:, 0],
        mean_reserved=usage[:, 1],
        mean_never_used=usage[:, 2],
        mean_free=usage[:, 3],
        mean_running=running,
        running_ratio=running / running[0],
        finish_tick=torch.stack([one.finish_tick.max() for one in served.values()]),
        preemptions=torch.stack([one.preemptions[-1] for one in served.values()]),
    )


def large_requests(count: int, seed: int) -> list[Request]:
    """Return requests with log-normal lengths whose means are those of ShareGPT, cut at the longest allowed text."""
    generator = torch.Generator().manual_seed(seed)

    def lengths(mean: float) -> list[int]:
        center = math.log(mean) - SPREAD**2 / 2  # the mean of a log-normal is exp(center + spread² / 2)
        return torch.empty(count).log_normal_(center, SPREAD, generator=generator).round().clamp(min=1).int().tolist()

    pairs = zip(lengths(MEAN_PROMPT), lengths(MEAN_OUTPUT), strict=True)
    longest = LARGE_MAX_LEN // 2
    return [Request(min(p, longest), min(o, LARGE_MAX_LEN - min(p, longest))) for p, o in pairs]


def large_fields(config: Config) -> dict[str, Any]:
    """Return a server of the size of the paper's smallest, under all four policies, and the sweep of block sizes."""
    requests = large_requests(LARGE_REQUESTS, config.seed)
    steps = len(POLICIES) + len(SWEEP)
    served = {}
    for done, policy in enumerate(POLICIES):
        served[policy] = _serve_large(requests, policy, LARGE_BLOCK)
        progress.report("simulating a server", done + 1, steps)
    waste = []
    for done, block_size in enumerate(SWEEP, start=len(POLICIES)):
        waste.append(block_waste(_serve_large(requests[:SWEEP_REQUESTS], "paged", block_size)))
        progress.report("simulating a server", done + 1, steps)
    longest = max(len(one.running) for one in served.values())
    ticks = torch.linspace(0, longest - 1, CHART_POINTS).round().long()

    def sampled(values: Tensor) -> Tensor:
        """Return the values at `ticks`, NaN after the last."""
        inside = ticks < len(values)
        picked = values[ticks.clamp(max=len(values) - 1)].float()
        return picked.masked_fill(~inside.view(-1, *[1] * (values.ndim - 1)), math.nan)

    mean_length = sum(r.total for r in requests) / len(requests)
    return {
        "large_requests": len(requests),
        "large_slots": LARGE_SLOTS,
        "large_max_model_len": LARGE_MAX_LEN,
        "large_block_size": LARGE_BLOCK,
        "large_mean_prompt": sum(r.prompt_len for r in requests) / len(requests),
        "large_mean_output": sum(r.output_len for r in requests) / len(requests),
        "large_ticks": ticks,
        "large_stack": {p: sampled(one.usage.cumsum(dim=1) / LARGE_SLOTS) for p, one in served.items()},
        "large_running": {p: sampled(one.running) for p, one in served.items()},
        "large_serving": serving_table(served),
        "sweep_block_sizes": torch.tensor(SWEEP),
        "sweep_waste": torch.tensor(waste),
        "sweep_table_entries": torch.tensor([math.ceil(mean_length / size) for size in SWEEP]).float(),
    }


def _serve_large(requests: Sequence[Request], policy: str, block_size: int) -> ServingTrace:
    return simulate_serving(requests, policy, num_slots=LARGE_SLOTS, block_size=block_size, max_model_len=LARGE_MAX_LEN)


def block_waste(served: ServingTrace) -> float:
    """Return the mean share of the slots in taken blocks that hold no token."""
    held = served.usage[:, :3].sum(dim=1).double()
    return float((1 - served.usage[:, 0] / held).mean())


def quoted_fields() -> dict[str, Any]:
    """Return what is counted from the paper's settings, and what its authors measured."""
    gib, rows = 2**30, (("opt-13b", 12), ("opt-66b", 21), ("opt-175b", 264))
    shapes = [preset(name) for name, _ in rows]
    sizes = [(s.num_hidden_layers, s.num_key_value_heads, s.head_dim) for s in shapes]
    slots = torch.tensor([max_kv_slots(memory * gib, *size) for (_, memory), size in zip(rows, sizes, strict=True)])
    return {
        "model_slots": ModelSlots(
            name=tuple(shape.name for shape in shapes),
            memory_gib=torch.tensor([float(memory) for _, memory in rows]),
            bytes_per_token=torch.tensor([kv_cache_bytes_per_token(*size) for size in sizes]),
            slots=slots,
            full_texts=slots // LARGE_MAX_LEN,
        ),
        "quoted_kv_use": {"max": 0.204, "pow2": 0.268, "oracle": 0.382, "paged": 0.963},  # figure 2
        "quoted_speedup": Quoted(
            against=(
                "FasterTransformer, Orca",
                "Text Generation Inference",
                "Transformers, without continuous batching",
            ),
            lowest=torch.tensor([2.0, 2.2, 14.0]),
            highest=torch.tensor([4.0, 2.5, 24.0]),
            source=("the paper", "the project's blog", "the project's blog"),
        ),
        "quoted_kernel_overhead": torch.tensor([0.20, 0.26]),
    }
