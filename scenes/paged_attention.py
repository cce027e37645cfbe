"""Draws internals_math.paged_attention.Trace."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, Group, LaggedStart, linear

from internals_math import paged_attention
from scenes.kit import theme
from scenes.kit.chart import Chart
from scenes.kit.gantt import Gantt
from scenes.kit.label import Label, Readout, StepThrough, counted
from scenes.kit.motion import ColumnByColumn, Stream
from scenes.kit.shapes import Frame, Stroke
from scenes.kit.slot_map import FULL, KEPT, WASTE, SlotMap
from scenes.kit.tensor_grid import TensorGrid, largest
from scenes.kit.token_row import TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.kit.traced import Traced
from scenes.paged_attention_stage import LOOKS, ROLES, SHARED, TOP, Course, Pages, role_of

STRIP = 32  # slots in a line of it
AREAS = (
    ("tokens", "KEY"), ("reserved, used later", "SCORE"), ("reserved, never used (in hindsight)", "LOSS"),
    ("free or lost", "FROZEN"),
)  # fmt: skip
POLICIES = {
    "max": ("reserve the", "longest answer"),
    "pow2": ("reserve the", "true length, rounded up"),
    "oracle": ("reserve the", "true length"),
    "paged": ("on demand:", "blocks"),
}
SET_ASIDE = {
    "max": "Nobody knows an answer’s length: the longest is reserved.",
    "pow2": "Each gets one chunk, with room for the answer’s length rounded up.",
    "oracle": "Each gets one chunk, with room for its true length.",
    "paged": "Each gets a block when it needs one.",
}
VERDICT = {
    "max": "Room for the longest possible answer, mostly never used.",
    "pow2": "Rounding up leaves room that nobody uses.",
    "oracle": "Even with the true length, room waits for tokens to come.",
    "paged": "Only the last block of each text has empty room.",
}


class PagedAttention(TopicScene):
    """A GPU that is full of keys and values can be mostly empty. Where did the memory go?"""

    core = paged_attention
    takeaway = "Blocks on demand and a table of where they lie: memory fills with tokens; the result stays the same."
    loop_alt = (
        "Tokens of three sequences fill scattered memory blocks while arrows in their block tables follow; finished "
        "blocks are released."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("The reservation")
    def reservation(self):
        """Room for the longest possible answer, mostly never used."""
        trace, policy = self.trace, str(self.trace.config.policy)
        strip = self.strip(0).hide().look_back(0)
        queue = TokenRow(
            trace.request_names, tile=0.7, height=0.44, size=0.22,
            roles=[role_of(k) for k in range(len(trace.request_names))],
        ).move_to([0, 2.35, 0]).align_to([-4.9, 0, 0], LEFT)  # fmt: skip
        waiting = Label("waiting", color=theme.MUTED).move_to([-6.4, 2.35, 0], aligned_edge=LEFT)
        self.say(f"{trace.num_slots:d} slots, each for one token’s keys and values.")
        self.play(FadeIn(strip, queue, waiting), run_time=theme.QUICK)
        self.hold(0.4)
        self.say(SET_ASIDE[policy])
        last, seated = self.last_tick(), []
        for sequence in self.holders(0):
            seated += self.admit(strip, queue, sequence)
        left = int(trace.waiting[policy][0])
        self.say("The others wait; most of the memory is dark." if left else "All of them fit.")
        if left:
            self.play(waiting.animate.set_color(theme.LOSS), run_time=0.4)
        for tick in range(1, last + 1):
            self.advance(strip, tick)
        self.say(VERDICT[policy])
        self.play(strip.show().animate.look_back(1), run_time=0.9)
        held = trace.contiguous_owner[last], trace.contiguous_state[last]
        self.play(FadeIn(*self.key(trace.usage[policy][last], *held, y=-2.1)), run_time=theme.QUICK)
        self.hold(0.4)

    def strip(self, tick: int) -> SlotMap:
        """Return the memory in lines of chunks, as it is after a tick."""
        trace = self.trace
        height, gap = self.strip_line()
        return SlotMap(
            trace.contiguous_owner[tick], trace.contiguous_state[tick], block=int(trace.config.block_size),
            roles=[role_of(k) for k in range(len(trace.request_names))], looks=LOOKS, per_line=STRIP,
            cell=(0.405, height), gap=(0.0, gap),
        ).move_to([0, 0.3, 0])  # fmt: skip

    def strip_line(self) -> tuple[float, float]:
        """Return the height of a line of the strip, and the gap below it."""
        lines = -(-int(self.trace.num_slots) // STRIP)
        gap = 0.62 if lines <= 2 else min(0.06, 0.6 / lines)
        return min(0.72, 3.1 / lines - gap) if lines > 2 else 0.72, gap

    def last_tick(self) -> int:
        """Return the last tick before a text leaves the memory."""
        first = set(self.holders(0))
        gone = (tick for tick in range(1, len(self.trace.contiguous_owner)) if first - set(self.holders(tick)))
        return next(gone, len(self.trace.contiguous_owner)) - 1

    def holders(self, tick: int) -> list[int]:
        """Return the texts that hold memory after a tick."""
        return sorted({int(one) for one in self.trace.contiguous_owner[tick] if int(one) >= 0})

    def admit(self, strip: SlotMap, queue: TokenRow, sequence: int) -> list[Any]:
        """Let a text leave the queue, take its chunk, and store its prompt; return what names it."""
        mine = np.flatnonzero(strip.owner.values == sequence)
        pace = min(1.0, 2 / len(self.holders(0)))
        name = queue.tile(sequence)
        queue.hide(sequence)
        start = strip.slot_center(int(mine[0]))
        is_chunk = str(self.trace.config.policy) != "paged"
        roomy = is_chunk and len(strip.places) <= 2 * STRIP
        spot = start + (strip.size[1] / 2 + 0.33) * UP + 0.2 * RIGHT if roomy else start
        self.play(name.animate.move_to(spot).set_opacity(1 if roomy else 0), run_time=0.7 * pace)
        edges = self.edges(strip, mine, sequence) if is_chunk else []
        stored = mine[[LOOKS[number] == FULL for number in strip.state.values[mine].tolist()]]
        if edges:
            self.play(FadeIn(*edges), run_time=0.5 * pace)
        self.play(strip.animate.show(stored), run_time=0.6 * pace)
        return [name, *edges]

    def edges(self, strip: SlotMap, mine: np.ndarray, sequence: int) -> list[Frame]:
        """Return frames around slots that lie together in a line."""
        runs = np.split(mine, np.flatnonzero((np.diff(mine) > 1) | (mine[1:] % STRIP == 0)) + 1)
        wide, high = strip.size
        return [
            Frame(wide * len(run) + 0.02, high + 0.06, color=getattr(theme, role_of(sequence))).move_to(
                (strip.slot_center(int(run[0])) + strip.slot_center(int(run[-1]))) / 2
            )
            for run in runs
        ]

    def advance(self, strip: SlotMap, tick: int) -> None:
        """Let every text in the memory store one more token."""
        before = strip.state.values == LOOKS.index(FULL)
        strip.set_values(self.trace.contiguous_owner[tick], self.trace.contiguous_state[tick])
        new = (strip.state.values == LOOKS.index(FULL)) & ~before
        strip.hide(new)
        self.play(strip.animate.show(strip.state.values == LOOKS.index(FULL)), run_time=0.45)

    def key(self, counts: Traced, owner: Traced, state: Traced, *, y: float, size: float = 0.36) -> list[Any]:
        """Return how many slots are in each state, each beside a slot of that kind of every text that has one."""
        words, parts, x = (("hold tokens", FULL), ("for tokens to come", KEPT), ("never used", WASTE)), [], -6.3
        for k, (text, look) in enumerate(words):
            found = np.flatnonzero(state.values == LOOKS.index(look))
            if not len(found):
                continue
            kinds = sorted(found[np.unique(owner.values[found], return_index=True)[1]].tolist())[:3]
            sample = SlotMap(
                owner[kinds], state[kinds], block=1, looks=LOOKS, roles=ROLES * 2, per_line=len(kinds),
                cell=(0.28, 1.3 * size),
            ).move_to([x, y, 0], aligned_edge=LEFT)  # fmt: skip
            color = theme.LOSS if look == WASTE else theme.TEXT
            number = Readout(lambda n: f"{n:d}", counts[k], size=size, bold=True, color=color)
            number.next_to(sample, RIGHT, buff=0.16)
            name = Label(text, color=color).next_to(number, RIGHT, buff=0.16).align_to(number, DOWN)
            parts += [sample, number, name]
            x = float(name.get_right()[0]) + 0.5
        hindsight = Label("seen in hindsight", color=theme.MUTED)
        if size > 0.3:
            return [*parts, hindsight.move_to([-6.3, y - 0.68, 0], aligned_edge=LEFT)]
        return [*parts, hindsight.move_to([x, 0, 0], aligned_edge=LEFT).align_to(parts[-1], DOWN)] if parts else []

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("Pages")
    def pages(self):
        """Cut memory into blocks and keep a table of where they are."""
        trace = self.trace
        stage = self.stage((None, None, None))
        chunks = self.strip(self.last_tick())
        size = int(trace.config.block_size)
        self.add(chunks)
        self.hold(0.3)
        self.say(f"Cut the memory into blocks of {counted(trace.config.block_size, 'slot')}.")
        self.play(chunks.animate.hide(), run_time=0.6)
        pool = stage.pool
        there = {
            "per_line": STRIP,
            "cell": tuple(chunks.size),
            "gap": (0.0, self.strip_line()[1]),
        }
        home = stage.layout(len(trace.block_ids))
        pool.hide().show_names(0).lay(**there).move_to(chunks)
        self.remove(chunks)
        self.add(pool)
        cell = (there["cell"][0] - 0.12 / size, there["cell"][1])
        self.play(pool.animate.lay(**{**there, "cell": cell, "gap": (0.12, there["gap"][1])}), run_time=0.9)
        self.hold(0.3)
        self.gather(stage, home)
        self.play(pool.animate.show_names(1), FadeIn(*stage.pool_heads), run_time=0.4)
        self.say("A text is cut the same way. Its pieces may lie anywhere.")
        table = stage.seat(0)
        table.hide()
        words = trace.request_tokens[str(trace.request_names[0])][: int(trace.prompt_len[0])]
        text = TokenRow(words, size=theme.SMALL, height=0.36, roles=role_of(0))
        text.move_to([0, -0.2, 0]).align_to([-6.5, 0, 0], LEFT)
        text = text.scale(min(1.0, 7.0 / text.width)).align_to([-6.5, 0, 0], LEFT)
        self.play(FadeIn(text, table, stage.names[0], *stage.heads), run_time=theme.QUICK)
        blocks = stage.blocks_of(0)
        for j in range(len(blocks)):
            if j == 1:
                self.say("Cut memory into blocks and keep a table of where they are.")
            piece = range(j * size, min((j + 1) * size, len(words)))
            self.send(
                stage, 0, j, [(k, text.tile(k)) for k in piece], text, pace=1.0 if len(blocks) <= 3 else 1 / len(blocks)
            )
        self.play(FadeOut(text), run_time=0.2)
        others = [k for k in (1, 2) if k < len(trace.request_names) and len(stage.blocks_of(k))]
        for sequence in others:
            self.enter(stage, sequence, run_time=0.8)
        self.hold(0.2)

    def gather(self, stage: Pages, home: dict[str, Any]) -> None:
        """Let the blocks of the strip fall to lines of their own, and close up to the pool."""
        there = stage.pool.copy()
        stage.pool.lay(**home)
        target = stage.put_pool().copy()
        stage.pool.become(there)
        self.play(stage.pool.animate.fall(target), run_time=0.9)
        self.play(stage.pool.animate.lay(**home).move_to(target), run_time=0.8)

    def send(
        self, stage: Pages, sequence: int, j: int, tiles: list[tuple[int, TokenRow]], text: TokenRow, *, pace: float
    ) -> None:
        """Let a piece of a text travel into its block; the table notes where it lies."""
        pool, block = stage.pool, stage.blocks_of(sequence)[j]
        slots = range(pool.slots(block).start, pool.slots(block).start + len(tiles))
        text.hide([k for k, _ in tiles])
        for (k, _), slot in zip(tiles, slots, strict=True):
            pool.write(slot, text.tokens[k])
        moves = [tile.animate.move_to(pool.slot_center(slot)) for (_, tile), slot in zip(tiles, slots, strict=True)]
        line = stage.point(sequence, j)
        self.play(LaggedStart(*moves, lag_ratio=0.06), pool.animate.claim(block), run_time=1.1 * pace)
        self.remove(*(tile for _, tile in tiles))
        pool.show(list(slots))
        self.play(stage.tables[sequence].animate.show(j), line.animate.draw_to(1), run_time=0.7 * pace)

    def stage(self, sequences: tuple[int | None, ...], moment: int = 0) -> Pages:
        """Return tables and pool of the served texts, with their words in the pool."""
        trace = self.trace
        course = Course(trace.block_tables, trace.table_filled, trace.slot_owner, trace.slot_state)
        roles = [role_of(k) for k in range(len(trace.request_names))]
        names = [str(name) for name in trace.request_names]
        stage = Pages(
            course, sequences, ids=trace.block_ids, block=int(trace.config.block_size), names=names, roles=roles,
            moment=moment,
        )  # fmt: skip
        for sequence in stage.lanes:
            self.write(stage, sequence)
        return stage

    def write(self, stage: Pages, sequence: int) -> list[int]:
        """Write the words of a text into its slots; return these."""
        words = self.trace.request_tokens[str(self.trace.request_names[sequence])]
        slots = stage.slots_of(sequence)
        for slot, word in zip(slots, words, strict=False):
            stage.pool.write(slot, word)
        return slots

    def enter(self, stage: Pages, sequence: int, *, run_time: float, chip: TokenRow | None = None) -> None:
        """Let a text take a lane (from the queue, where its `chip` is), and store its whole prompt."""
        table, pool = stage.seat(sequence).hide(), stage.pool
        slots, blocks = self.write(stage, sequence), stage.blocks_of(sequence)
        pool.hide(slots)
        lines = [stage.point(sequence, j) for j in range(len(blocks))]
        tiles = [stage.word(pool.words[slot], sequence) for slot in slots]
        if chip is not None:
            self.play(chip.animate.move_to(stage.names[sequence]), run_time=0.5 * run_time)
            self.remove(chip)
        self.play(FadeIn(stage.names[sequence], table), run_time=0.25 * run_time)
        self.play(
            table.animate.show(), pool.animate.claim(blocks), *(line.animate.draw_to(1) for line in lines),
            Stream(tiles, [pool.slot_center(slot) for slot in slots]), run_time=0.75 * run_time,
        )  # fmt: skip
        self.remove(*tiles)
        pool.show(slots)

    # -- chapter 3 and the loop -------------------------------------------------------------------------------------

    @chapter("One token at a time")
    def one_token_at_a_time(self):
        """A new block is taken only when the last one is full."""
        trace = self.trace
        first = [k if k < len(trace.request_names) and stored else None for k, stored in self.stored(0)]
        stage = self.stage(tuple(first))
        stage.stand()
        self.add(*stage.parts())
        queue, note = self.waiting(stage)
        self.say("A pass of the model adds a token to each text.")
        if queue:
            self.play(FadeIn(*queue.values(), note), run_time=0.3)
        end, told = self.first_leaving(), False
        for tick in range(1, end + 1):
            takes = any(len(self.rows(tick, s)) > len(self.rows(tick - 1, s)) for s in stage.lanes)
            if takes and tick > 1 and not told:
                told = True
                self.say("A new block is taken only when the last one is full.")
            self.step(stage, tick, pace=0.8 if tick <= 2 else 0.5)
        room = self.key(trace.slot_usage[end], trace.slot_owner[end], trace.slot_state[end], y=-2.79, size=0.24)
        self.say("Empty room: less than one block per text.")
        self.play(stage.pool.animate.look_back(1), FadeIn(*room), run_time=0.6)
        self.finish_beat()
        self.say("A text that is done gives its blocks back.")
        self.play(stage.pool.animate.look_back(0), FadeOut(*room), run_time=0.4)
        self.play(*self.departing(stage, end), run_time=0.9)
        if end + 1 < len(trace.slot_owner):
            arrives = any(s not in stage.lanes and len(self.rows(end + 1, s)) for s in range(len(trace.request_names)))
            if arrives:
                self.say("The next one moves in, wherever blocks are free.")
            self.step(stage, end + 1, pace=0.75, queue=queue)
            if set(queue) <= set(stage.lanes):
                self.remove(note)
        fit = {policy: field[0] for policy, field in trace.running.items()}
        self.say(f"Reserved, {counted(fit['max'], 'text')} fit at first; in blocks, {fit['paged']:d} would.")
        self.hold(0.2)

    def waiting(self, stage: Pages) -> tuple[dict[int, TokenRow], Label]:
        """Return the texts that wait, by number, and why."""
        trace = self.trace
        names = [k for k in range(len(trace.request_names)) if k not in stage.lanes]
        chips = {k: TokenRow(trace.request_names[k : k + 1], tile=0.5, height=0.32, roles=role_of(k)) for k in names}
        if chips:
            Group(*chips.values()).arrange(RIGHT, buff=0).move_to([-0.6, TOP + 0.13, 0])
        words = f"waiting, as we draw {counted(trace.shown_at_once, 'text')} at a time"
        return chips, Label(words, color=theme.MUTED).move_to([-0.6, TOP + 0.52, 0])

    def stored(self, tick: int) -> list[tuple[int, bool]]:
        """Return of the first three texts whether they are in memory after a tick."""
        count = len(self.trace.request_names)
        return [(k, k < count and bool(self.trace.sequence_length[tick, k] > 0)) for k in range(3)]

    def rows(self, tick: int, sequence: int) -> np.ndarray:
        """Return the blocks of a text after a tick."""
        table = self.trace.block_tables.values[tick, sequence]
        return table[~np.isnan(table)]

    def first_leaving(self) -> int:
        """Return the first tick at whose end a text is done."""
        lengths = self.trace.sequence_length.values
        left = (lengths[:-1] > 0) & (lengths[1:] == 0)
        return int(np.flatnonzero(left.any(axis=1))[0])

    def step(
        self, stage: Pages, tick: int, *, pace: float, along: Sequence[Any] = (),
        queue: dict[int, TokenRow] | None = None,
    ) -> None:  # fmt: skip
        """Let every text store its next token, `along` with other motions; those that come in store their prompt."""
        trace, pool, before = self.trace, stage.pool, stage.now
        running = [s for s in stage.lanes if len(self.rows(tick, s))]
        stage.go_to(tick)
        flights, claims, lines = [], [], []
        for sequence in running:
            slot = self.write(stage, sequence)[-1]
            flights.append((slot, stage.word(pool.words[slot], sequence).set_opacity(0)))
            for j in stage.missing(sequence):
                claims.append(stage.blocks_of(sequence)[j])
                lines.append(stage.point(sequence, j))
                stage.tables[sequence].hide(j)
        stage.take(before)
        begin = [*along, *(tile.animate.set_opacity(1) for _, tile in flights)]
        if lines:
            begin += [line.animate.draw_to(1) for line in lines]
            begin += [stage.tables[s].animate.show() for s in running]
        if begin:
            self.play(pool.animate.claim(claims), *begin, run_time=(0.6 if lines else 0.4) * pace)
        if flights:
            self.play(*(tile.animate.move_to(pool.slot_center(slot)) for slot, tile in flights), run_time=0.6 * pace)
        self.remove(*(tile for _, tile in flights))
        pool.show([slot for slot, _ in flights])
        stage.fill_in()
        for sequence in range(len(trace.request_names)):
            if sequence not in stage.lanes and len(self.rows(tick, sequence)) and len(stage.lanes) < stage.count:
                self.enter(stage, sequence, run_time=1.2 * pace, chip=(queue or {}).get(sequence))

    def departing(self, stage: Pages, tick: int) -> list[Any]:
        """Return the motions in which the texts that are done after a tick give their blocks back."""
        lengths = self.trace.sequence_length.values
        after = lengths[tick + 1] if tick + 1 < len(lengths) else np.zeros_like(lengths[0])
        gone = [s for s in stage.lanes if after[s] == 0]
        blocks = [block for s in gone for block in stage.blocks_of(s)]
        slots = [slot for s in gone for slot in stage.slots_of(s)]
        parts = [part for s in gone for part in stage.leave(s)]
        return [stage.pool.animate.hide(slots).release(blocks), FadeOut(*parts)] if gone else []

    @loop
    def serve(self):
        """From the fullest moment on, texts end and others come, until the pool is empty and fills up again."""
        trace = self.trace
        full, last = self.first_leaving(), len(trace.slot_owner) - 1
        first = [s for s in range(len(trace.request_names)) if len(self.rows(full, s))]
        stage = self.stage((*first, None, None)[: max(3, len(first))], full)
        stage.stand()
        self.add(*stage.parts())
        self.hold(0.4)
        for tick in [*range(full + 1, last + 1), *range(full + 1)]:
            leaving = self.departing(stage, stage.now)
            if leaving and tick:
                self.play(*leaving, run_time=0.25)
            elif leaving:
                self.play(*leaving, run_time=0.4)
                self.hold(0.2)  # the pool is empty
            self.step(stage, tick, pace=0.19)
        self.add(*(line for _, line in sorted(stage.arrows.items())))  # crossing as they did at first
        self.hold(0.4)

    # -- chapter 4 --------------------------------------------------------------------------------------------------

    @chapter("Attention does not notice")
    def attention(self):
        """Block by block, the softmax comes out the same."""
        trace = self.trace
        moment = int(np.flatnonzero(trace.sequence_length.values[:, 0] == len(trace.decode_tokens))[0])
        stage = self.stage((0, None, None), moment)
        pool = stage.pool
        stage.stand(arrows=False)
        blocks = [int(block) for block in trace.decode_blocks]
        pool.hide(trace.slot_owner.values[moment] != 0).release().claim(blocks)
        limit = largest(trace.query)
        query = TensorGrid(trace.query, cell=(0.14, 0.3), number=None, limit=limit, role="QUERY")
        query.move_to([-0.95, 1.6, 0])
        asks = Label(f"query of “{trace.decode_tokens[-1]}”", color=theme.QUERY, bold=True).next_to(
            query, UP, buff=0.16
        )
        panel, panel_names = self.panel()
        self.say(f"Back to {trace.request_names[0]}’s last token. Its query needs scattered keys.")
        self.play(FadeIn(*stage.parts(), query, asks), run_time=theme.QUICK)
        self.hold(0.5)
        marker = Frame(1.56, stage.tables[0].row, color=theme.QUERY, line=theme.LINE)
        marker.move_to(stage.tables[0].row_end(0) + 0.74 * LEFT).set_opacity(0)
        score_limit = largest(trace.block_scores)
        pace = min(0.7, 2.0 / max(1, len(blocks) - 1))
        self.say("It follows the table block by block.")
        scores, told = None, False
        for j, block in enumerate(blocks):
            if j == 1:
                self.say("Carried along: the largest score, a sum, a mix.")
            if j > 1 and not told and trace.running_max[j] > float(trace.running_max[j - 1]):
                told = True
                self.say("When a larger score comes, sum and mix are rescaled.")
            y = pool.block_left(block)[1]
            mark = marker.animate.move_to(stage.tables[0].row_end(j) + 0.74 * LEFT).set_opacity(1)
            hop = query.animate.move_to([-0.95, y, 0])
            follow = asks.animate.move_to([-0.95, y + 0.41, 0])
            gone = [] if scores is None else [FadeOut(scores)]
            self.play(mark, hop, follow, *gone, pool.animate.focus(pool.slots(block)), run_time=0.8 * pace)
            scores = TensorGrid(
                trace.block_scores[j], cell=(2.08 / len(trace.block_scores[j]), 0.3), limit=score_limit, role="SCORE",
                number="+.1f" if len(trace.block_scores[j]) <= 4 else None,
            ).move_to([0.84, y, 0])  # fmt: skip
            scores.hide()
            self.add(scores)
            self.play(ColumnByColumn(scores), run_time=0.6 * pace)
            flight = scores.copy()
            into = flight.animate.move_to(panel[-1].get_center() + 1.2 * UP).scale(0.6).set_opacity(0)
            if j == 0:
                self.play(into, FadeIn(*panel, *panel_names), run_time=0.7 * pace)
            else:
                maximum, total, mix = panel
                self.play(
                    into, maximum.animate.set_value(trace.running_max[j], RIGHT),
                    total.animate.set_value(trace.running_sum[j], RIGHT),
                    mix.animate.set_values(trace.running_output[j]), run_time=0.7 * pace,
                )  # fmt: skip
            self.remove(flight)
            self.hold(0.15 * pace)
        self.say("Block by block, the softmax comes out the same.")
        reference = TensorGrid(
            trace.reference_output, cell=panel[-1].cell, limit=panel[-1].limit, role="FROZEN"
        ).move_to(panel[-1]).shift(1.15 * DOWN)  # fmt: skip
        name = Label("all keys side by side", color=theme.MUTED).next_to(reference, UP, buff=0.17)
        name.align_to(reference, LEFT)
        self.play(pool.animate.lead(), FadeOut(marker, query, asks, scores), FadeIn(reference, name), run_time=0.5)
        landing = panel[-1].copy()
        self.add(landing)
        self.play(landing.animate.move_to(reference), run_time=0.7)
        difference = Label(f"largest difference {trace.max_abs_diff:.0e}", bold=True)
        difference.next_to(reference, DOWN, buff=0.22).align_to(reference, LEFT)
        self.play(FadeIn(difference), run_time=0.3)
        self.hold(2.1)

    def panel(self) -> tuple[tuple[Readout, Readout, TensorGrid], list[Label]]:
        """Return what a query carries from block to block, and its names."""
        trace = self.trace
        limit = largest(trace.running_output)
        mix = TensorGrid(trace.running_output[0], cell=(0.54, 0.42), limit=limit, role="VALUE")
        mix.move_to([-4.34, -0.85, 0])
        readouts, names = [], []
        carried = (
            ("largest score", trace.running_max[0], 0.55),
            ("sum of exp(score − largest)", trace.running_sum[0], 0.1),
        )
        for words, value, y in carried:
            name = Label(words, color=theme.MUTED).move_to([mix.get_left()[0], y, 0], aligned_edge=LEFT)
            number = Readout(lambda v: f"{v:.2f}", value, size=0.22, bold=True, color=theme.SCORE)
            number.move_to([mix.get_right()[0] + 0.3, y, 0], aligned_edge=RIGHT)
            readouts.append(number)
            names.append(name)
        names.append(
            Label("mix of values so far", color=theme.VALUE, bold=True).next_to(mix, UP, buff=0.17).align_to(mix, LEFT)
        )
        return (readouts[0], readouts[1], mix), names

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("Share, then copy on write")
    def share(self):
        """Two answers share one prompt until they disagree."""
        trace = self.trace
        samples = len(trace.share_tokens)
        course = Course(
            trace.share_tables, trace.share_filled, trace.share_slot_owner, trace.share_slot_filled,
            trace.share_ref_counts,
        )  # fmt: skip
        lanes = (0, *(None for _ in range(max(1, samples - 1))))
        stage = Pages(
            course, lanes, ids=trace.block_ids, block=int(trace.config.block_size), names=list(trace.share_tokens),
            roles=[*(role_of(k) for k in range(samples)), SHARED],
        )  # fmt: skip
        pool = stage.pool
        for slot, word in zip(stage.slots_of(0), trace.share_prompt, strict=True):
            pool.write(slot, word)
        stage.stand()
        self.say("One prompt, several answers." if samples > 1 else "One prompt, one answer.")
        self.play(FadeIn(*stage.parts()), run_time=theme.QUICK)
        self.hold(0.4)
        if samples > 1:
            self.fork(stage, samples)
        told, copied = set[int](), False
        last = min(len(trace.share_writer), 2 + 4 * samples)  # four tokens of each: some open another block
        for frame in range(2, last):
            writer = int(trace.share_writer[frame])
            is_first = writer not in told and len(told) < 2
            copies = int(trace.share_copy_from[frame]) >= 0
            if copies and not copied:
                self.say("Who writes into a shared block first gets a copy.")
            elif is_first and copied:
                self.say("The last one left writes in place.")
            elif not told and not copies:
                self.say("The prompt ends with a full block: nothing needs to be copied.")
            elif len(told) >= min(2, samples) and frame == 2 + samples:
                who = "Two answers" if samples == 2 else "The answers"
                self.say(f"{who} share one prompt until they disagree.")
            copied |= copies
            slow = is_first or copies
            told.add(writer)
            self.write_sample(stage, frame, pace=1.0 if slow else 0.66 / max(2, samples))
        used, alone = trace.share_blocks_used[last - 1], trace.share_blocks_alone[last - 1]
        if samples > 1:
            saved = Label(f"{used:d} blocks in place of {alone:d}", size=0.22, bold=True)
            self.play(FadeIn(saved.move_to([-6.3, -2.79, 0], aligned_edge=LEFT)), run_time=0.4)
        self.hold(0.6)

    def fork(self, stage: Pages, samples: int) -> None:
        """Copy the table of the first sample, not its blocks."""
        self.say("A fork copies the table; blocks count their holders.")
        stage.go_to(1)
        pace = 1.0 if samples <= 2 else 0.6
        for sample in range(1, samples):
            table = stage.seat(sample)
            place = table.get_center()
            table.move_to(stage.tables[0])
            lines = [stage.point_from(place, sample, j) for j in range(len(stage.blocks_of(sample)))]
            self.add(table)
            counts = stage.pool.animate.set_values(*stage.values(), counts=stage.counts())
            self.play(table.animate.move_to(place), FadeIn(stage.names[sample]), run_time=0.9 * pace)
            self.play(*(line.animate.draw_to(1) for line in lines), counts, run_time=0.8 * pace)

    def write_sample(self, stage: Pages, frame: int, *, pace: float) -> None:
        """Let a sample store one token, after a copy of its block if others hold that too."""
        trace, pool = self.trace, stage.pool
        writer, source = int(trace.share_writer[frame]), int(trace.share_copy_from[frame])
        word = stage.word(trace.share_word[frame], writer).set_opacity(0)
        self.play(word.animate.set_opacity(1), run_time=0.4 * pace)
        old = range(len(pool.words))[pool.slots(source)] if source >= 0 else ()
        tokens = [(slot, pool.words[slot]) for slot in old if pool.words[slot]]
        before, counts, colors = stage.blocks_of(writer), pool.counts, pool.color
        stage.go_to(frame)
        slots = stage.slots_of(writer)
        pool.write(slots[-1], trace.share_word[frame])
        if source >= 0:
            pool.counts = counts  # until the writer has left the block
            pool.color[pool.slots(source)] = colors[pool.slots(source)]
            self.copy_block(stage, writer, source, int(trace.share_copy_to[frame]), tokens, before, pace=pace)
        lines = [stage.point(writer, j) for j in stage.missing(writer)]
        stage.take(frame - 1)
        if lines:
            blocks = stage.blocks_of(writer)
            self.play(pool.animate.claim(blocks), *(line.animate.draw_to(1) for line in lines), run_time=0.5 * pace)
        self.play(word.animate.move_to(pool.slot_center(slots[-1])), run_time=0.7 * pace)
        self.remove(word)
        pool.show(slots)
        stage.fill_in()

    def copy_block(
        self, stage: Pages, writer: int, source: int, target: int, tokens: list[Any], before: list[int], *, pace: float
    ) -> None:
        """Let copies of a block's tokens travel to a new block, and the writer's arrow follow them."""
        pool = stage.pool
        start = pool.slots(source).start
        tiles = []
        for slot, token in tokens:
            place = pool.slots(target).start + slot - start
            pool.write(place, token)
            tile = TokenRow((token,), size=theme.SMALL, height=0.34, roles=role_of(writer))
            tiles.append((tile.move_to(pool.slot_center(slot)), place))
        self.play(
            pool.animate.claim(target), *(t.animate.move_to(pool.slot_center(p)) for t, p in tiles), run_time=1.0 * pace
        )
        self.remove(*(tile for tile, _ in tiles))
        pool.show([place for _, place in tiles])
        j = before.index(source)
        old = stage.arrows.pop((writer, j))
        line = stage.point(writer, j)
        stage.take(stage.now - 1)
        parted = pool.animate.set_values(*stage.values(), counts=stage.counts())
        self.play(FadeOut(old), line.animate.draw_to(1), parted, run_time=0.7 * pace)

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("What fits")
    def what_fits(self):
        """Same memory, more requests at once."""
        trace = self.trace
        served, models = trace.large_serving, trace.model_slots
        charts, counts, titles, below = [], [], [], []
        for k, (policy, (deed, words)) in enumerate(POLICIES.items()):
            x = -4.55 + 3.13 * k
            charts.append(self.areas(policy, first=k == 0).move_to([x, 0.2, 0]))
            titles.append(Label(deed, size=theme.SMALL, color=theme.MUTED).move_to([x, 2.86, 0]))
            titles.append(Label(words, bold=True).move_to([x, 2.56, 0]))
            count = Readout(lambda n: f"{n:.0f}", trace.large_running[policy][0], size=0.44, bold=True)
            count.move_to([x - 0.75, 1.98, 0])
            unit = Label("at once", color=theme.MUTED).move_to([x - 0.25, 2.1, 0], aligned_edge=LEFT)
            counts.append((count, unit))
            mean = Label("while some wait", size=theme.SMALL, color=theme.MUTED)
            share = Label(f"{served.mean_tokens[k]:.0%} tokens", color=theme.KEY, bold=True).move_to([x, -2.0, 0])
            quote = Label(f"paper: {trace.quoted_kv_use[policy]:.1%}", size=theme.SMALL, color=theme.MUTED)
            below.append((
                mean.move_to([x - 0.25, 1.8, 0], aligned_edge=LEFT), share, quote.next_to(share, DOWN, buff=0.16)
            ))  # fmt: skip
        memory = f"{models.memory_gib[0]:.0f} GiB"
        self.say(f"{trace.large_requests:d} requests to {models.name[0]}, simulated four ways in {memory}.")
        parts = (part for pair in counts for part in pair)
        self.play(FadeIn(*charts, *titles, *self.meanings(), *parts), run_time=theme.QUICK)
        self.hold(0.5)
        self.run_servers(charts, counts, below, seconds=3.3)
        self.say(f"In our simulation: {served.running_ratio[3]:.1f}× the requests at once.")
        self.hold(0.4)
        if int(served.preemptions[3]):
            self.say("Out of blocks, the latest request must start over.")
            tag = Label(f"{served.preemptions[3]:d} restarts, no text lost", size=theme.SMALL, color=theme.MUTED)
            self.play(FadeIn(tag.move_to([charts[3].get_x(), -1.32, 0])), run_time=0.4)

    def run_servers(self, charts: list[Chart], counts: list[Any], below: list[Any], *, seconds: float) -> None:
        """Let all servers work pass by pass; when one is done, it shows its means."""
        trace = self.trace
        alive = [int((~np.isnan(trace.large_running[policy].values)).sum()) for policy in POLICIES]
        done, settling = 0, list[Any]()
        for upto in sorted(set(alive)):
            span = seconds * (upto - done) / max(alive)
            moves, settling = settling, []
            for k, policy in enumerate(POLICIES):
                if alive[k] < upto:
                    continue
                motion = charts[k].animate(rate_func=linear, run_time=span)
                for number in range(len(AREAS)):
                    motion = motion.draw_curve(number, (upto - 1) / (alive[k] - 1))
                count, unit = counts[k]
                field = trace.large_running[policy][done:upto]
                moves += [motion, StepThrough(count, field, RIGHT, rate_func=linear, run_time=span)]
                if alive[k] == upto:
                    mean = trace.large_serving.mean_running[k]
                    settling += [
                        count.animate(run_time=0.4).set_value(mean, RIGHT),
                        unit.animate(run_time=0.4).set_text("at once, mean"), FadeIn(*below[k], run_time=0.4),
                    ]  # fmt: skip
            self.play(*moves)
            done = upto
        self.play(*settling)

    def areas(self, policy: str, *, first: bool) -> Chart:
        """Return how the memory is used over time, as areas one on the other, nothing drawn yet."""
        trace = self.trace
        ticks, stack = trace.large_ticks, trace.large_stack[policy]
        chart = Chart(
            2.65, 2.5, x=(0, float(ticks[-1])), y=(0, 1), y_ticks=(0, 0.5, 1) if first else (),
            x_ticks=(0, 10000) if first else (), x_format="count", y_format=".0%", x_label="passes" if first else "",
        )  # fmt: skip
        chart.curve(ticks, stack[:, 0], role="KEY", fill=True, strength=0.85, line=0, drawn=0)
        for k, (_, role) in enumerate(AREAS[1:], start=1):
            strength = 0.3 if role == "FROZEN" else 0.85
            edges = (stack[:, k - 1], stack[:, k])
            chart.curve(ticks, stack[:, k], role=role, spread=edges, strength=strength, line=0, drawn=0)
        return chart

    def meanings(self) -> list[Any]:
        """Return what the colors of the areas mean."""
        labels, x = [], -6.0
        for words, role in AREAS:
            color = getattr(theme, role)
            sign = Stroke([x, -2.7], [x + 0.3, -2.7], color=color, line=theme.THICK)
            label = Label(words, size=theme.SMALL, color=color, bold=True).next_to(sign, RIGHT, buff=0.12)
            labels += [sign, label]
            x = float(label.get_right()[0]) + 0.5
        return labels

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("How big a page?")
    def how_big(self):
        """Small blocks waste little; large ones need short tables."""
        trace = self.trace
        sizes, last = trace.sweep_block_sizes, len(trace.sweep_block_sizes) - 1
        chosen = int(np.flatnonzero(sizes.values == int(trace.large_block_size))[0])
        looks: dict[str, Any] = {
            "x": (1, float(sizes[-1])), "log_x": True, "x_ticks": (1, 4, 16, 64, 256), "x_format": "d",
            "x_label": "slots in a block",
        }  # fmt: skip
        waste = Chart(
            4.9, 3.0, y=(0, 0.16), y_ticks=(0, 0.05, 0.1, 0.15), y_format=".0%", y_label="slots that stay empty",
            **looks,
        ).move_to([-3.3, -0.1, 0])  # fmt: skip
        entries = Chart(
            4.9, 3.0, y=(0, 500), y_ticks=(0, 100, 200, 300, 400, 500), y_format="d", y_label="blocks in a table",
            **looks,
        ).move_to([3.6, -0.1, 0])  # fmt: skip
        waste.curve(sizes, trace.sweep_waste, role="LOSS", dots=0.06, drawn=0)
        entries.curve(sizes, trace.sweep_table_entries, role="WEIGHT", dots=0.06, drawn=0)
        self.say("Larger blocks leave more of the last one empty.")
        self.play(FadeIn(waste), run_time=theme.QUICK)
        self.play(waste.animate(rate_func=linear).draw_curve(0), run_time=1.6)
        self.say("The smaller a block, the more blocks to look up.")
        self.play(FadeIn(entries), run_time=theme.QUICK)
        self.play(entries.animate(rate_func=linear).draw_curve(0), run_time=1.6)
        self.say(f"vLLM takes {trace.large_block_size:d} slots: little waste, short tables.")
        self.play(waste.ride(0, 1).animate.ride(0, chosen / last), entries.ride(0, 1).animate.ride(0, chosen / last),
                  run_time=1.2)  # fmt: skip
        signs = [
            Label(f"{trace.sweep_waste[chosen]:.1%}", size=0.32, color=theme.LOSS, bold=True).move_to(
                waste.point(0, chosen) + 0.55 * UP + 0.1 * LEFT
            ),
            Label(f"{trace.sweep_table_entries[chosen]:.0f} blocks", size=0.32, color=theme.WEIGHT, bold=True).move_to(
                entries.point(0, chosen) + 0.55 * UP + 0.5 * RIGHT
            ),
        ]
        self.play(FadeIn(*signs), run_time=0.4)
        self.hold(0.2)

    # -- chapter 8 --------------------------------------------------------------------------------------------------

    @chapter("What the speed-up means")
    def what_it_means(self):
        """The largest speed-up is against a loop that serves one batch after the other."""
        trace = self.trace
        quoted = trace.quoted_speedup
        count = len(quoted.against)
        top = largest(quoted.highest)
        lines = Gantt(
            quoted.lowest, quoted.highest, lanes=[""] * count, lane=list(range(count)), roles="KEY",
            span=(0, top), width=10.6, height=0.5, gap=0.85, now=0,
        ).move_to([-0.9, 0.45, 0])  # fmt: skip
        names, numbers = [], []
        for k in range(count):
            y = lines.moment(0, k)[1]
            place = [lines.get_left()[0], y + 0.47, 0]
            words = f"over {quoted.against[k]}  ({quoted.source[k]})"
            names.append(Label(words, bold=k == count - 1).move_to(place, aligned_edge=LEFT))
            number = Label(f"{quoted.lowest[k]:g}–{quoted.highest[k]:g}×", size=0.3, bold=True)
            numbers.append(number.move_to([lines.get_right()[0] + 0.25, y, 0], aligned_edge=LEFT))
        axis = Chart(
            lines.width, 0.01, x=(0, float(top)), y=(0, 1), x_ticks=(1, 10, 20), x_format=lambda v: f"{v:g}×",
            x_label="times as many requests served in the same time",
        ).next_to(lines, DOWN, buff=0.12)  # fmt: skip
        note = Label("quoted, not measured here", color=theme.MUTED).move_to([lines.get_left()[0], -2.6, 0],
                                                                            aligned_edge=LEFT)  # fmt: skip
        self.say(f"vLLM is known for {quoted.highest[2]:g}×. Its authors measured:")
        self.play(FadeIn(lines, axis, *names[:2], note), run_time=theme.QUICK)
        self.play(lines.animate(rate_func=linear).run_to(quoted.highest[0]), FadeIn(*numbers[:2]), run_time=1.0)
        self.say(
            f"{quoted.lowest[0]:g}–{quoted.highest[0]:g}× over tuned servers; {quoted.highest[2]:g}× over a plain loop."
        )
        self.play(FadeIn(names[2]), lines.animate(rate_func=linear).run_to(quoted.highest[2]), run_time=1.6)
        self.play(FadeIn(numbers[2]), run_time=0.4)
        slower = trace.quoted_kernel_overhead
        self.say(f"Attention gets {slower[0]:.0%} to {slower[1]:.0%} slower, but more requests fit.")
        self.hold(0.2)
