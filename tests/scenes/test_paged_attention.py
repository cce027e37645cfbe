"""What the PagedAttention video shows: texts in scattered blocks, tables that point at them, and what memory is for."""

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest

from internals_math import paged_attention, trace_store
from internals_math import paged_attention_experiment as experiment
from internals_math.paged_attention import Config
from scenes.kit import theme
from scenes.kit.chart import Chart
from scenes.kit.gantt import Gantt
from scenes.kit.label import Label, Readout
from scenes.kit.page_table import PageTable
from scenes.kit.shapes import Stroke
from scenes.kit.slot_map import SlotMap
from scenes.kit.tensor_grid import TensorGrid
from scenes.kit.token_row import TokenRow
from scenes.paged_attention import PagedAttention
from tests.scenes.watching import pictures, watched


@pytest.fixture(scope="module")
def trace():
    return trace_store.get(paged_attention)


def captions(unit, trace=None):
    return [caption.text for caption in watched(PagedAttention, unit, trace=trace)[0].captions]


def pool_of(scene):
    return pictures(scene, SlotMap)[0]


def words_in(pool):
    """Return the words that are seen in each slot."""
    full = (pool.state.values == 1) & (pool.presence >= 1)
    return {slot: str(word) for slot, word in enumerate(pool.words) if full[slot]}


def words_of(trace, moment, tokens, tables, filled):
    """Return the words that should lie in each slot, from the tables alone."""
    size, expected = trace.config.block_size, {}
    for name, table, counts in zip(tokens, tables[moment], filled[moment], strict=True):
        here = table[~table.isnan()].int().tolist()
        for j, (block, count) in enumerate(zip(here, counts[~counts.isnan()].int().tolist(), strict=True)):
            for offset in range(count):
                expected[block * size + offset] = tokens[name][j * size + offset]
    return expected


def test_the_video_has_the_eight_chapters_of_its_story():
    assert [unit.title for unit in PagedAttention.chapter_units()] == [
        "The reservation",
        "Pages",
        "One token at a time",
        "Attention does not notice",
        "Share, then copy on write",
        "What fits",
        "How big a page?",
        "What the speed-up means",
    ]


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        ("reservation", "Room for the longest possible answer, mostly never used."),
        ("pages", "Cut memory into blocks and keep a table of where they are."),
        ("one_token_at_a_time", "A new block is taken only when the last one is full."),
        ("attention", "Block by block, the softmax comes out the same."),
        ("share", "Two answers share one prompt until they disagree."),
        ("what_fits", "In our simulation: 4.6× the requests at once."),
        ("how_big", "vLLM takes 16 slots: little waste, short tables."),
        ("what_it_means", "2–4× over tuned servers; 24× over a plain loop."),
    ],
)
def test_every_chapter_says_its_sentence(unit, sentence):
    assert sentence in captions(unit)


def test_two_texts_fill_the_memory_with_room_that_is_never_used(trace):
    def look(scene):
        strip = pool_of(scene)
        return int(((strip.state.values == 1) & (strip.presence >= 1)).sum()), float(strip.hindsight)

    scene, seen = watched(PagedAttention, "reservation", look)
    held = [count for count, _ in seen]
    assert held == sorted(held)  # tokens only come
    strip, tick = pool_of(scene), 6  # the last with both of the first two texts
    assert (strip.presence == 1).all()
    assert seen[-1][1] == strip.hindsight == 1
    assert strip.owner.origin == f"contiguous_owner[{tick}, :]"
    numbers = [label.text for label in pictures(scene, Readout)]
    assert numbers == [str(int(count)) for count in trace.usage["max"][tick, :3]]
    (queue,) = [row for row in pictures(scene, TokenRow) if len(row.tokens) == 6]
    assert [str(t) for t, there in zip(queue.tokens, queue.presence, strict=True) if there] == ["C", "D", "E", "F"]


def test_the_strip_of_memory_becomes_a_column_of_blocks(trace):
    def look(scene):
        pool = pool_of(scene)
        boxes = [(*pool.block_center(block)[:2], pool.size[0] * 4, pool.size[1]) for block in range(16)]
        pairs = [(a, b) for k, a in enumerate(boxes) for b in boxes[:k]]
        over = [abs(a[0] - b[0]) < a[2] - 0.05 and abs(a[1] - b[1]) < a[3] - 0.05 for a, b in pairs]
        return pool.width, any(over)

    scene, seen = watched(PagedAttention, "pages", look)
    widths = [width for width, _ in seen]
    assert max(widths) > 12 > 4.1 > min(widths)
    assert not any(over for _, over in seen)  # on their way no block passes over another
    pool = pool_of(scene)
    tops = [pool.block_center(block)[1] for block in range(16)]
    assert np.diff(tops).max() < 0  # in one column, in the order of their numbers
    expected = words_of(trace, 0, trace.request_tokens, trace.block_tables, trace.table_filled)
    assert words_in(pool) == expected


def arrows_of(scene):
    """Return where each arrow starts and ends."""
    found = [line for line in pictures(scene, Stroke) if line.head and line.drawn >= 1 and line.opacity >= 1]
    return [tuple(line.get_center()[:2] + end for end in (line.path[0], line.path[-1])) for line in found]


def points_at(scene):
    """Return for each table its blocks, and where its arrows end."""
    pool, pairs = pool_of(scene), []
    for table in pictures(scene, PageTable):
        for j in table.rows():
            ends = [end for start, end in arrows_of(scene) if np.allclose(start, table.row_end(j)[:2], atol=0.07)]
            place = pool.block_left(int(table.blocks.values[j]))[:2]
            pairs.append((len(ends), [np.linalg.norm(end - place) for end in ends]))
    return pairs


@pytest.mark.parametrize("unit", ["pages", "one_token_at_a_time", "share"])
def test_every_row_of_a_table_points_at_its_block(unit):
    scene, _ = watched(PagedAttention, unit)
    pairs = points_at(scene)
    assert len(pairs) >= 6
    assert all(count == 1 and distances[0] < 0.07 for count, distances in pairs)


def test_tokens_fly_to_the_slot_their_table_names_and_blocks_open_when_the_last_is_full(trace):
    size = trace.config.block_size

    def look(scene):
        pool = pool_of(scene)
        flying = [row for row in pictures(scene, TokenRow) if row.style.size == theme.SMALL]
        tables = [table for table in pictures(scene, PageTable) if table.opacity >= 1]
        counted = [int(np.nansum(table.filled.values[table.presence >= 1])) for table in tables]
        return words_in(pool), np.flatnonzero(pool.claimed >= 1).tolist(), len(flying), counted

    scene, seen = watched(PagedAttention, "one_token_at_a_time", look)
    expected = words_of(trace, 7, trace.request_tokens, trace.block_tables, trace.table_filled)
    at_end = words_in(pool_of(scene))
    assert at_end == expected
    assert max(flying for _, _, flying, _ in seen) >= 3
    for words, claimed, flying, counted in seen:
        if flying < 4:  # a prompt that comes in is counted as a whole
            assert sum(counted) in (len(words), len(words) + flying)
        assert {slot // size for slot in words} <= set(claimed)  # no token outside an outlined block
    sizes = [len(words) for words, *_ in seen]
    assert min(np.diff(sizes)) < -10  # the blocks of the first text go back together
    assert max(sizes) > sizes[0] + 15


def test_what_the_last_blocks_leave_empty_is_counted_and_hatched_before_a_text_leaves(trace):
    def look(scene):
        pool, numbers = pool_of(scene), [label.text for label in pictures(scene, Readout)]
        return (pool.owner.origin, numbers) if pool.hindsight >= 1 else None

    _, seen = watched(PagedAttention, "one_token_at_a_time", look)
    told = [one for one in seen if one]
    tick, counts = 6, trace.slot_usage[6, :3].tolist()
    assert told[-1] == (f"slot_owner[{tick}, :]", [str(count) for count in counts])
    assert counts[0] == 38
    assert 0 < counts[1] + counts[2] < 3 * trace.config.block_size


def test_the_texts_that_are_not_drawn_wait_in_sight_until_there_is_a_lane(trace):
    def look(scene):
        return [str(row.tokens[0]) for row in pictures(scene, TokenRow) if row.style.size == theme.LABEL]

    scene, seen = watched(PagedAttention, "one_token_at_a_time", look)
    assert ["D", "E", "F"] in seen
    assert look(scene) == ["E", "F"]
    assert "D" in {label.text for label in pictures(scene, Label)}  # beside its table now
    assert "Reserved, 2 texts fit at first; in blocks, 6 would." in captions("one_token_at_a_time")


def test_the_loop_begins_with_a_full_pool_serves_all_six_texts_and_comes_back_to_its_start(trace):
    def look(scene):
        tables = {table.blocks.origin.split(",")[1] for table in pictures(scene, PageTable)}
        return words_in(pool_of(scene)), tables, pool_of(scene).claimed.any()

    scene, seen = watched(PagedAttention, "loop", look)
    expected = words_of(trace, 6, trace.request_tokens, trace.block_tables, trace.table_filled)
    assert words_in(pool_of(scene)) == seen[0][0] == expected
    assert any(words == {} and not claimed for words, _, claimed in seen)
    assert len(set.union(*(tables for _, tables, _ in seen))) == 6


def test_the_query_stands_beside_each_block_in_the_order_of_the_table(trace):
    def look(scene):
        queries = pictures(scene, TensorGrid, "query")
        lit = np.flatnonzero(pool_of(scene).emphasis >= 1) // trace.config.block_size
        scores = [grid for grid in pictures(scene, TensorGrid, "block_scores") if grid.opacity >= 1]
        carried = {readout.value.origin for readout in pictures(scene, Readout)}
        return (set(lit.tolist()), queries[0].get_y(), {s.values.origin for s in scores}, carried) if scores else None

    scene, seen = watched(PagedAttention, "attention", look, frame_rate=20)
    pool, order, stand = pool_of(scene), [], set()
    for lit, y, scores, carried in (one for one in seen if one):
        (block,) = lit
        assert y == pytest.approx(pool.block_center(block)[1])
        j = trace.decode_blocks.tolist().index(block)
        assert scores == {f"block_scores[{j}, :]"}
        if not order or order[-1] != block:
            order.append(block)
        if f"running_sum[{j}]" in carried:
            stand.add(j)  # the scores are still there when they have been added up
    assert order == trace.decode_blocks.tolist()
    assert stand == set(range(len(order)))
    assert {label.text for label in pictures(scene, Readout)} == {
        f"{trace.running_max[-1]:.2f}", f"{trace.running_sum[-1]:.2f}"
    }  # fmt: skip
    mixes = pictures(scene, TensorGrid, "running_output")
    (reference,) = pictures(scene, TensorGrid, "reference_output")
    assert {mix.values.origin for mix in mixes} == {"running_output[3, :]"}
    assert any(np.allclose(mix.get_center(), reference.get_center()) for mix in mixes)


def test_a_fork_counts_two_holders_and_the_first_writer_takes_a_copy(trace):
    def look(scene):
        pool = pool_of(scene)
        return pool.counts.values.tolist(), words_in(pool)

    scene, seen = watched(PagedAttention, "share", look)
    source, target = int(trace.share_copy_from[2]), int(trace.share_copy_to[2])
    counts = [numbers[source] for numbers, _ in seen]
    assert [count for count, _ in groupby(counts)] == [1, 2, 1]
    size = trace.config.block_size
    words = words_in(pool_of(scene))
    assert words[source * size] == words[target * size] == trace.share_prompt[4]
    assert (words[target * size + 1], words[source * size + 1]) == ("fox", "crab")
    frame = int(pool_of(scene).owner.origin.split("[")[1].split(",")[0])
    texts = {name: (*trace.share_prompt, *tokens) for name, tokens in trace.share_tokens.items()}
    assert words == words_of(trace, frame, texts, trace.share_tables, trace.share_filled)
    told = f"{trace.share_blocks_used[frame]} blocks in place of {trace.share_blocks_alone[frame]}"
    assert told in {label.text for label in pictures(scene, Label)}


def test_the_areas_of_every_policy_add_up_to_the_memory(trace):
    scene, _ = watched(PagedAttention, "what_fits")
    charts = pictures(scene, Chart)
    assert len(charts) == 4
    for policy, chart in zip(trace.large_stack, charts, strict=True):
        assert (chart.drawn == 1).all()
        origins = [curve.y.origin for curve in chart.curves]
        assert origins == [f"large_stack.{policy}[:, {k}]" for k in range(4)]
        lows = [curve.low.origin for curve in chart.curves[1:]]
        assert lows == origins[:-1]  # each area stands on the one before
    numbers = [label.text for label in pictures(scene, Readout)]
    assert numbers == [f"{mean:.0f}" for mean in trace.large_serving.mean_running]


def test_the_servers_work_pass_by_pass_together_and_end_with_their_means(trace):
    alive = [int((~trace.large_running[policy].isnan()).sum()) for policy in trace.large_running]

    def look(scene):
        charts, counts = pictures(scene, Chart), [label.text for label in pictures(scene, Readout)]
        return [float(chart.drawn[0]) for chart in charts], counts

    _, seen = watched(PagedAttention, "what_fits", look)
    for shares, counts in (one for one in seen if len(one[0]) == 4):
        passes = [share * (count - 1) for share, count in zip(shares, alive, strict=True)]
        for share, here in zip(shares, passes, strict=True):
            assert share == 1 or here == pytest.approx(max(passes))
        assert counts != ["1"] * 4
    means = [f"{mean:.0f}" for mean in trace.large_serving.mean_running]
    done = [k for k, share in enumerate(seen[-40][0]) if share == 1]
    assert [seen[-40][1][k] for k in done] == [means[k] for k in done]


def test_the_marker_stops_at_the_size_that_vllm_takes(trace):
    scene, _ = watched(PagedAttention, "how_big")
    place = trace.sweep_block_sizes.tolist().index(16)
    for chart in pictures(scene, Chart):
        assert chart.rider[0] * (len(trace.sweep_block_sizes) - 1) == pytest.approx(place)
    texts = {label.text for label in pictures(scene, Label)}
    assert {f"{trace.sweep_waste[place]:.1%}", f"{trace.sweep_table_entries[place]:.0f} blocks"} <= texts


def test_what_others_measured_stands_beside_what_it_was_measured_against(trace):
    scene, _ = watched(PagedAttention, "what_it_means")
    (lines,) = pictures(scene, Gantt)
    assert float(lines.now) == trace.quoted_speedup.highest.max()
    labels = pictures(scene, Label)
    for k, against in enumerate(trace.quoted_speedup.against):
        (name,) = [label for label in labels if against in label.text]
        assert trace.quoted_speedup.source[k] in name.text
        assert 0 < name.get_y() - lines.moment(0, k)[1] < 0.6
    assert name.style.bold  # the plain loop
    assert "quoted, not measured here" in {label.text for label in labels}


def shown_with(trace, **settings):
    """Return a trace of other settings whose large simulation is still that of the default."""
    config = Config(**settings)
    run = experiment.serve(config)
    fields = (
        experiment.request_fields(run), experiment.contiguous_fields(run, config),
        experiment.paged_fields(run, config), experiment.decode_fields(run, config), experiment.share_fields(config),
        experiment.serving_fields(run, config),
    )  # fmt: skip
    return replace(trace, config=config, **{name: value for part in fields for name, value in part.items()})


@pytest.mark.parametrize(
    "settings",
    [
        {"block_size": 1, "num_blocks": 64, "num_samples": 4, "policy": "paged"},
        {"block_size": 16, "num_requests": 12, "policy": "pow2"},
        {"block_size": 8, "num_blocks": 8, "num_requests": 2, "num_samples": 1, "policy": "oracle"},
        {"block_size": 2, "num_blocks": 32, "num_samples": 3, "layer": 0, "head": 3, "seed": 9},
    ],
    ids=str,
)
def test_other_settings_can_be_shown(settings, trace):
    other = shown_with(trace, **settings)
    for unit in ("reservation", "pages", "one_token_at_a_time", "attention", "share", "loop"):
        scene, _ = watched(PagedAttention, unit, trace=other, frame_rate=4)
        assert scene.ledger
        if unit == "pages":
            expected = words_of(other, 0, other.request_tokens, other.block_tables, other.table_filled)
            assert words_in(pool_of(scene)) == expected


def test_a_prompt_that_fills_its_last_block_is_not_copied(trace):
    other = shown_with(trace, block_size=1, num_blocks=64)
    assert other.share_copies == 0
    said = captions("share", other)
    assert "The prompt ends with a full block: nothing needs to be copied." in said
    assert "The first to write into a shared block gets a copy of it." not in said
