"""Draws internals_math.rag.Trace."""

from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP, FadeIn, FadeOut, LaggedStart, linear

from internals_math import rag
from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.chart import Chart, round_ticks
from scenes.kit.formula import Formula
from scenes.kit.label import Label, counted
from scenes.kit.links import Links
from scenes.kit.motion import RowByRow
from scenes.kit.shapes import Frame, arrow
from scenes.kit.tensor_grid import largest
from scenes.kit.token_row import TokenRow
from scenes.kit.topic_scene import TopicScene, chapter, loop
from scenes.kit.vector_plane import TurnThrough, VectorPlane
from scenes.rag_stage import (
    ANSWER,
    CENTER,
    DOCUMENT,
    INNER,
    MODEL,
    QUESTION,
    RADIUS,
    THINNEST,
    WRONG,
    Circle,
    Page,
    beside,
    clear_of,
    heading,
    keep_inside,
    legend,
    mark,
    paper,
    places,
    question_row,
)

READ = 3  # the last document that is read on screen, and how many the loop shows
COMPARED = 12  # documents whose cosines have room


class RAG(TopicScene):
    """How does a model answer from a document that is not in its weights?"""

    core = rag
    takeaway = "Retrieval is a dot product between arrows; the answer is only as right as what it finds."
    loop_alt = (
        "A question’s arrow lands among document arrows on a circle; the closest ones are read, and the answer moves "
        "from the remembered place to the one in the documents."
    )

    # -- chapter 1 --------------------------------------------------------------------------------------------------

    @chapter("Stale memory")
    def stale_memory(self):
        """Weights remember yesterday."""
        trace = self.trace
        old, new, gold = int(trace.old_place), int(trace.true_place), int(trace.gold)
        question = question_row(trace).move_to([0, 2.6, 0])
        weights = Frame(4.2, 0.62, color=theme.FROZEN, fill=theme.SURFACE).move_to([0, 1.72, 0])
        name = Label("the model’s frozen weights", color=theme.FROZEN, bold=True).move_to(weights)
        bars = places(trace, trace.closed_book, base=-1.35, height=2.25).hide()
        title = heading(bars, "the model’s answer", old)
        thing = TokenRow((trace.doc_names[gold],), roles=DOCUMENT, size=0.22, height=0.5)
        spots = [np.array([bars.tip(k)[0], -2.4, 0]) for k in (old, new)]
        thing = keep_inside(thing.move_to(spots[1]))
        spots[1] = thing.get_center()
        thing = keep_inside(thing.move_to(spots[0]))
        here = beside(thing, "is here")
        self.say("The model has learned a world. It answers from memory.")
        self.play(FadeIn(question, weights, name, thing, here), run_time=theme.QUICK)
        self.add(bars)
        self.play(FadeIn(title), run_time=0.2)
        self.ask(question, weights)
        self.play(bars.animate.show(), run_time=0.8)
        sure = mark(bars, old, f"{trace.closed_book_old:.0%}", ANSWER)
        self.play(FadeIn(sure), run_time=0.3)
        self.say(f"Then the world changes: the {trace.doc_names[gold]} moves to the {trace.answer_words[new]}.")
        self.play(FadeOut(here), run_time=0.2)
        self.play(thing.animate(path_arc=0.9).move_to(spots[1]), run_time=1.5)
        self.play(FadeIn(beside(thing, "is here now")), run_time=0.3)
        self.say("Ask again: the same answer. Weights remember yesterday.")
        self.play(FadeOut(sure), bars.animate.hide(), run_time=0.4)
        self.ask(question, weights)
        self.play(bars.animate.show(), run_time=0.6)
        wrong = mark(bars, old, f"still {trace.closed_book_old:.0%}", WRONG)
        right = clear_of(mark(bars, new, f"{trace.closed_book_true:.1%}", DOCUMENT), wrong)
        self.play(bars.animate.paint(old, WRONG), FadeIn(wrong, right), run_time=0.6)
        self.hold(0.6)

    def ask(self, question: TokenRow, weights: Frame) -> None:
        """Let a question sink into the weights."""
        sinking = question.copy()
        self.add(sinking)
        self.play(sinking.animate.scale(0.4).move_to(weights).set_opacity(0), run_time=0.7)
        self.remove(sinking)

    # -- chapter 2 --------------------------------------------------------------------------------------------------

    @chapter("Words miss")
    def words_miss(self):
        """Word matching fails when the words differ."""
        trace = self.trace
        words, gold = trace.query_words, int(trace.gold)
        shown = [int(k) for k in trace.lexical_shown]
        question = TokenRow(words, roles=QUESTION, size=0.24, height=0.54).move_to([0, 2.5, 0])
        question.align_to([-6.5, 0, 0], LEFT)
        rows = []
        for k, doc in enumerate(shown):
            row = TokenRow(trace.doc_words[doc], size=0.24, height=0.54).move_to([0, 1.2 - 0.74 * k, 0])
            rows.append(row.align_to([-6.5, 0, 0], LEFT))
        top = largest(trace.lexical_scores_by_name, trace.lexical_scores)
        bars = Bars(
            trace.lexical_running[0, shown], limit=top, length=2.2, step=0.74, thickness=0.5, role=ANSWER,
            number_size=0.22,
        ).move_to([0, 1.57, 0], aligned_edge=UP).align_to([2.25, 0, 0], LEFT)  # fmt: skip
        signs = [
            Label("question", size=0.22, color=theme.QUERY, bold=True).next_to(question, RIGHT, buff=0.3),
            Label("documents", size=0.22, color=theme.KEY, bold=True).next_to(rows[0], UP, buff=0.22),
            Label("score of shared words", size=0.22, color=theme.SCORE, bold=True).next_to(bars, UP, buff=0.06),
        ]
        signs[1].align_to(rows[0], LEFT)
        signs[2].align_to(bars, LEFT).set_y(signs[1].get_y())
        self.say("Search by words: each shared word scores, rare words most.")
        self.play(FadeIn(question, *signs), LaggedStart(*map(FadeIn, rows), lag_ratio=0.1), run_time=0.8)
        self.add(bars)
        other = trace.paraphrase if trace.config.use_paraphrase else trace.owner
        for w, word in enumerate(words):
            if word == other:
                self.say(self.verdict(word))
            self.match(question, rows, w, slow=largest(trace.lexical_words[w]) > 1 or word == other)
            self.play(bars.animate.set_values(trace.lexical_running[w, shown]), run_time=0.2)
        best = [k for k, doc in enumerate(shown) if trace.lexical_best[doc]]
        is_found = len(best) == 1 and shown[best[0]] == gold
        self.say("Here the words suffice." if is_found else "Word matching fails when the words differ.")
        color, ask = (theme.KEY, "this one") if is_found else (theme.LOSS, "which one?")
        others = [k for k in range(len(rows)) if k not in best]
        frames = [Frame.around(rows[k], pad=0.06, color=color) for k in best]
        asks = [Label(ask, size=0.24, bold=True, color=color).next_to(bars.tip(k), RIGHT, buff=1.0) for k in best]
        self.play(*(rows[k].animate.recede() for k in others), bars.animate.focus(best), run_time=0.4)
        self.play(FadeIn(*frames, *asks), run_time=0.4)
        self.hold(0.8)

    def verdict(self, word: Any) -> str:
        """Return what is to be said of the word for the owner."""
        if self.trace.config.use_paraphrase:
            return f"But the asker says “{word}”, and no document does."
        return f"“{word}” stands in the right document."

    def match(self, question: TokenRow, rows: list[TokenRow], w: int, *, slow: bool) -> None:
        """Let a word of the question fly to every equal word of a document; one that finds none falls past all."""
        word = str(question.tokens[w])
        hits = [(row, j) for row in rows for j, token in enumerate(row.tokens) if str(token) == word]
        pace = 0.8 if slow else 0.25
        if hits:
            flights = [question.tile(w) for _ in hits]
            self.add(*flights)
            landing = [f.animate.become(row.tile(j)) for f, (row, j) in zip(flights, hits, strict=True)]
            self.play(*landing, run_time=pace)
            self.remove(*flights)
            for row, j in hits:
                row.paint(j, ANSWER)
        else:
            lost = question.tile(w).set_z_index(1)
            self.add(lost)
            end = rows[-1 if slow else 1].get_center() * UP + lost.get_center() * RIGHT
            self.play(lost.animate.move_to(end).paint(0, WRONG), run_time=2 * pace)
            self.play(FadeOut(lost), question.animate.paint(w, WRONG), run_time=0.3)

    # -- chapter 3 --------------------------------------------------------------------------------------------------

    @chapter("Arrows on a circle")
    def arrows_on_a_circle(self):
        """Training turns each question to its document."""
        trace = self.trace
        gold, stop, last = int(trace.gold), int(trace.shown_step), len(trace.training_steps) - 1
        center, count = np.array([*CENTER, 0.0]), len(trace.doc_names)
        docs = VectorPlane(
            trace.training_docs[0], [DOCUMENT] * count, radius=RADIUS, limit=1.0, line=theme.LINE,
            names=trace.doc_names,
        ).move_to(center).hide()  # fmt: skip
        questions = VectorPlane(
            trace.training_queries[0], [QUESTION] * count, radius=INNER * RADIUS, limit=1.0, line=theme.LINE
        ).move_to(center).hide()  # fmt: skip
        texts = [
            paper(text, role, 5.0).move_to([1.5, y, 0], aligned_edge=LEFT)
            for text, role, y in ((trace.doc_texts[gold], DOCUMENT, 2.5), (trace.query_text, QUESTION, 1.8))
        ]
        top = 1.05 * largest(trace.training_loss)
        chart = Chart(
            4.4, 2.1, x=(0, float(trace.training_steps[last])), y=(0, top), x_ticks=(0, 100, 200, 300, 400),
            y_ticks=round_ticks(0, top, 4), x_format="d", y_format="g", x_label="training step", y_label="loss",
        ).move_to([4.1, -1.15, 0])  # fmt: skip
        chart.level(trace.chance_loss)
        chance = Label("chance", color=theme.MUTED)
        chance.next_to(chart.place(trace.training_steps[last], trace.chance_loss), UP, buff=0.1).align_to(chart, RIGHT)
        loss = chart.curve(trace.training_steps, trace.training_loss, role=WRONG, line=theme.THICK, drawn=0)
        self.say("Each text becomes an arrow: the mean of its word vectors.")
        self.add(docs, questions)
        for text, plane in zip(texts, (docs, questions), strict=True):
            self.play(FadeIn(text), run_time=0.3)
            self.become_arrow(text, center, plane.animate.show(gold))
            self.play(RowByRow(plane, [k for k in range(count) if k != gold]), run_time=0.6)
        word = trace.paraphrase if trace.config.use_paraphrase else trace.owner
        self.say(f"Untrained, “{word}” does not point to the {trace.owner}’s document.")
        self.play(docs.animate.focus(gold).label(gold), questions.animate.focus(gold), run_time=0.5)
        self.hold(0.8)
        self.play(docs.animate.lead(), questions.animate.lead(), FadeIn(chart, chance), run_time=0.4)
        self.train(docs, questions, chart, loss, 0, stop, 1.6)
        self.say("Its own document pulls it; all others push, the near ones most.")
        self.tug(docs, questions, gold)
        self.say("Training turns each question to its document.")
        self.train(docs, questions, chart, loss, stop, last, 3.3)
        self.play(docs.animate.label(), run_time=0.4)
        self.hold(0.5)

    def become_arrow(self, text: TokenRow, center: np.ndarray, arrow_comes: Any) -> None:
        """Let a text shrink to where all arrows start, and its own arrow come out."""
        flying = text.copy()
        self.add(flying)
        self.play(flying.animate.scale(0.25).move_to(center).set_opacity(0), run_time=0.6)
        self.remove(flying)
        self.play(arrow_comes, run_time=0.2)

    def train(
        self, docs: VectorPlane, questions: VectorPlane, chart: Chart, loss: int, start: int, end: int, seconds: float
    ) -> None:
        """Let all arrows go through the training from one record to another, and the loss with them."""
        trace, part = self.trace, slice(start, end + 1)
        share = end / (len(trace.training_steps) - 1)
        self.play(
            TurnThrough(docs, trace.training_docs[part]),
            TurnThrough(questions, trace.training_queries[part]),
            chart.animate(rate_func=linear).draw_curve(loss, share).ride(loss, share),
            run_time=seconds,
        )

    def tug(self, docs: VectorPlane, questions: VectorPlane, gold: int) -> None:
        """Show what turns one question: the pull of its document, and the push of the others."""
        trace = self.trace
        tip = questions.tip(gold)
        ends = [docs.tip(k) for k in range(len(trace.doc_names))]
        rivals = Links(trace.rivals[gold], [tip], ends, role=WRONG, bend=0.0, line=0.06).set_z_index(-1)
        forces = [
            VectorPlane(field[gold], [role], radius=1.4 * RADIUS, limit=1.0, circle=False)
            .move_to(tip)
            .hide()
            .set_z_index(2)
            for field, role in ((trace.pull_turn, DOCUMENT), (trace.push_turn, WRONG))
        ]
        words = legend([("pull of its own document", DOCUMENT), ("push of all others", WRONG)], left=1.55, top=1.2)
        others = [k for k in range(len(ends)) if k != gold]
        self.play(docs.animate.focus(gold), questions.animate.hide(others), run_time=0.4)
        self.add(*forces)
        self.play(forces[0].animate.show(), FadeIn(words[0]), run_time=0.6)
        self.hold(0.4)
        self.play(FadeIn(rivals), run_time=0.4)
        self.play(forces[1].animate.show(), FadeIn(words[1]), run_time=0.6)
        self.hold(0.8)
        self.finish_beat()
        leaving = FadeOut(*forces, rivals, *words)
        self.play(leaving, docs.animate.lead(), questions.animate.show(), run_time=0.4)

    # -- chapter 4 --------------------------------------------------------------------------------------------------

    @chapter("Search")
    def search(self):
        """Retrieval is: which arrows point the same way?"""
        trace = self.trace
        circle = Circle(trace)
        query = circle.arrow(circle.far()).hide()
        asked = paper(trace.query_text, QUESTION, 4.8).move_to([4.1, 2.6, 0])
        shown = sorted(_order(trace.cosines)[:COMPARED])
        best = [shown.index(k) for k in circle.best]
        bars = Bars(
            trace.cosines[shown], limit=1.0, signed=True, length=2.5, step=0.35, role=DOCUMENT, number=".2f",
            names=[trace.doc_names[k] for k in shown],
        ).move_to([0, 1.62, 0], aligned_edge=UP).align_to([3.4, 0, 0], LEFT).hide()  # fmt: skip
        title = Label("cosine with the question", size=0.22, color=theme.KEY, bold=True).next_to(bars, UP, buff=0.12)
        title.align_to([6.5, 0, 0], RIGHT)
        self.say("A question becomes an arrow too.")
        self.play(FadeIn(circle.docs, asked), run_time=theme.QUICK)
        self.add(query)
        self.become_arrow(asked, circle.center, query.animate.show())
        self.play(query.animate.set_tips(trace.query_point.reshape(1, 2)), run_time=1.2)
        self.say("Retrieval is: which arrows point the same way?")
        self.play(FadeIn(title, bars), run_time=0.3)
        self.play(RowByRow(bars), run_time=1.1)
        self.play(bars.animate.reorder(_ranks(trace.cosines[shown])), run_time=1.0)
        self.say(f"Open a wedge until it holds the best {counted(trace.config.top_k, 'match', 'matches')}.")
        self.play(*self.opening(circle), bars.animate.focus(best), run_time=1.8)
        self.hold(0.4)
        self.say("A softmax over these few says how much each will count.")
        self.weigh(bars, circle.best)
        self.hold(0.8)

    def opening(self, circle: Circle) -> list[Any]:
        """Return how the wedge opens until it holds the best documents, which then lead."""
        wedge = circle.wedge.set_z_index(-1)
        if circle.is_flat:
            self.add(wedge)
        opens = [wedge.animate.set_angles(self.trace.wedge[-1])] if circle.is_flat else []
        return [*opens, circle.docs.animate.focus(circle.best)]

    def weigh(self, bars: Bars, best: list[int]) -> None:
        """Turn the cosines of the best documents into shares."""
        trace = self.trace
        looks: dict[str, Any] = {"limit": 1.0, "names": [trace.doc_names[k] for k in best]}
        kept = Bars(
            trace.topk_cosines, signed=True, length=bars.length, step=bars.step, role=DOCUMENT, number=".2f",
            name_size=bars.name_style.size, **looks,
        ).move_to(bars, aligned_edge=UP)  # fmt: skip
        top = min(-0.8, kept.get_bottom()[1] - 0.75)
        step = min(0.5, (2.8 + top) / len(best))
        prior = Bars(
            trace.prior, length=2.2, step=step, role=ANSWER, number=".0%",
            number_size=max(theme.SMALL, min(0.24, 0.6 * step)),
            name_size=max(theme.SMALL, min(0.22, 0.57 * step)), **looks,
        ).move_to([0, top, 0], aligned_edge=UP).align_to([3.4, 0, 0], LEFT).hide()  # fmt: skip
        law = Formula("p(z | x) prop exp(cos \\/ tau)", size=0.24).next_to(prior, UP, buff=0.28)
        law.align_to([1.55, 0, 0], LEFT)
        heat = Label(f"τ = {trace.config.temperature:g}", size=0.22, color=theme.MUTED).next_to(law, RIGHT, buff=0.25)
        self.add(kept)
        self.play(FadeOut(bars), run_time=0.4)
        flights = [kept.bar(k) for k, amount in enumerate(kept.amounts) if amount > THINNEST]
        spots = [prior.to_scene(0, (len(best) / 2 - k - 0.5) * step) for k in range(len(flights))]
        self.add(*flights)
        moves = [one.animate.move_to(spot).set_opacity(0) for one, spot in zip(flights, spots, strict=True)]
        self.play(*moves, FadeIn(law, heat, prior), run_time=0.9)
        self.remove(*flights)
        self.play(prior.animate.show(), run_time=0.8)

    # -- chapter 5 --------------------------------------------------------------------------------------------------

    @chapter("Without looking at all")
    def without_looking_at_all(self):
        """Search fewer places, and risk missing one."""
        trace = self.trace
        circle = Circle(trace)
        query = circle.arrow(trace.query_point.reshape(1, 2))
        cells, centers = circle.cells(), circle.centers()
        probe = int(trace.config.n_probe) - 1
        every = self.cost(trace.exact_cost, "every document", trace.config.top_k, 1.55)
        titles = [
            Label("dot products", size=0.22, color=theme.MUTED).move_to([2.2, 2.55, 0], aligned_edge=LEFT),
            Label("best found", size=0.22, color=theme.MUTED).move_to([6.5, 2.55, 0], aligned_edge=RIGHT),
        ]
        self.say(f"Exact search compares with all. Wikipedia has {trace.sizes['passages']:count} passages.")
        self.play(FadeIn(circle.docs, query), run_time=theme.QUICK)
        self.play(FadeIn(*titles), run_time=0.3)
        self.compare(circle, trace.doc_points, every, 1.6)
        self.say("Sort them into cells, and look into the nearest only.")
        self.play(FadeIn(*cells, centers), run_time=0.6)
        self.play(*self.look_into(circle, cells, trace.ivf_visited), run_time=0.6)
        words = f"centers, then {counted(trace.config.n_probe, 'cell')}"
        row = self.cost(trace.ivf_query_cost[probe], words, trace.ivf_found_count[probe], 0.45)
        lit = [k for k, is_in in enumerate(trace.ivf_scored) if is_in]
        self.compare(circle, trace.doc_points[lit], row, 0.9)
        self.say("Another question near a border can miss a document behind it.")
        self.play(query.animate.set_tips(trace.border_point.reshape(1, 2)), run_time=1.0)
        self.play(*self.look_into(circle, cells, trace.border_cells[:1]), run_time=0.6)
        missed = [int(k) for k, hit in zip(trace.border_topk, trace.border_found[0], strict=True) if not hit]
        rings = [Frame(0.36, 0.36, color=theme.LOSS, line=theme.THICK).move_to(circle.docs.tip(k)) for k in missed]
        row = self.cost(trace.border_cost[0], "a question near a border", trace.border_found_count[0], -0.65)
        self.play(FadeIn(*rings, *row), run_time=0.5)
        self.hold(0.5)
        self.say("Search fewer places, and risk missing one.")
        self.play(*self.look_into(circle, cells, trace.border_cells[:2]), run_time=0.8)
        caught = [ring.animate.set_color(theme.KEY) for ring in rings] if trace.border_found[1].values.all() else []
        more = self.cost(trace.border_cost[1], "one cell more", trace.border_found_count[1], -1.75)
        self.play(FadeIn(*more), *caught, run_time=0.5)
        self.hold(0.6)

    def compare(self, circle: Circle, tips: Any, row: list[Any], seconds: float) -> None:
        """Let a hand go around the circle from document to document, while the bar of dot products grows."""
        name, bar, share = row
        around = np.argsort(np.arctan2(tips.values[:, 1], tips.values[:, 0]))
        stops = tips[around].reshape(-1, 1, 2)
        hand = VectorPlane(stops[0], [ANSWER], radius=circle.radius, limit=1.0, circle=False, line=theme.THICK)
        hand.move_to(circle.center)
        self.add(bar.hide())
        self.play(FadeIn(hand, name), run_time=0.2)
        sweep = [TurnThrough(hand, stops)] if len(stops) > 1 else []
        self.play(*sweep, bar.animate(rate_func=linear).show(), run_time=seconds)
        self.play(FadeOut(hand), FadeIn(share), run_time=0.3)

    def look_into(self, circle: Circle, cells: list[Any], visited: Any) -> list[Any]:
        """Return the change that lights some cells and the documents in them."""
        inside = [int(cell) for cell in visited]
        lit = [k for k, cell in enumerate(self.trace.ivf_assignments) if int(cell) in inside]
        fans = [fan.animate.lead() if k in inside else fan.animate.recede() for k, fan in enumerate(cells)]
        return [*fans, circle.docs.animate.focus(lit)]

    def cost(self, amount: Any, words: str, found: Any, y: float) -> list[Any]:
        """Return how many dot products a search takes, and how many of the best documents it finds."""
        trace = self.trace
        most = largest(trace.ivf_query_cost, trace.border_cost, trace.exact_cost)
        bar = Bars(amount.reshape(1), limit=most, length=2.4, step=0.5, role=QUESTION, number="d", number_size=0.26)
        bar.move_to([0, y, 0]).align_to([2.2, 0, 0], LEFT)
        name = Label(words, size=0.22, bold=True).next_to(bar, UP, buff=0.06).align_to(bar, LEFT)
        color = theme.KEY if int(found) == int(trace.config.top_k) else theme.LOSS
        share = Label(f"{found:d} of {trace.config.top_k:d}", size=0.26, bold=True, color=color)
        return [name, bar, share.move_to([6.5, y, 0], aligned_edge=RIGHT)]

    # -- chapter 6 --------------------------------------------------------------------------------------------------

    @chapter("Reading")
    def reading(self):
        """The document changes the prediction, not the weights."""
        trace = self.trace
        old = int(np.argmax(trace.closed_book))
        bars = places(trace, trace.closed_book, base=-2.3, height=2.2)
        memory = mark(bars, old, "from memory", MODEL)
        page = Page(trace)
        title = heading(bars, "the model’s answer", old)
        if trace.config.use_paraphrase:
            self.say(f"This tiny reader knows only “{trace.owner}”: ask it by name.")
        else:
            self.say("Without a document, the answer comes from memory.")
        self.play(FadeIn(page.question, page.names[1], bars, memory, title), run_time=theme.QUICK)
        self.hold(0.5)
        self.say("Put the best match before the question.")
        self.slide_in(page, page.names[0], page.names[2])
        looked = Label(f"{trace.reader_place_weight[0]:.1%} of one head’s attention", color=theme.SCORE)
        keep_inside(looked.next_to(page.links, RIGHT, buff=0.3))
        self.play(FadeIn(page.links, page.ring, looked), run_time=0.7)
        self.say("The document changes the prediction, not the weights.")
        self.play(FadeOut(memory), bars.animate.set_values(trace.per_doc[0]), run_time=1.0)
        sure = self.sure(bars, 0)
        self.play(FadeIn(sure), run_time=0.3)
        last = min(READ, len(trace.per_doc)) - 1
        if not last:
            return
        self.hold(1.2)
        self.say("Another document, another answer: it copies what it reads.")
        gone = FadeOut(page.links, page.ring, sure, looked, page.names[0], page.names[2])
        self.play(gone, page.question.animate.hide(page.begun), run_time=0.2)
        self.play(page.document.animate.shift(14 * RIGHT), run_time=0.4)
        self.remove(page.document, page.question)
        other = Page(trace, last)
        self.add(other.question)
        self.slide_in(other, other.names[0], page.names[2])
        self.play(FadeIn(other.links, other.ring), run_time=0.4)
        self.play(bars.animate.set_values(trace.per_doc[last]), run_time=0.8)
        self.play(FadeIn(self.sure(bars, last)), run_time=0.3)
        self.hold(0.5)

    def slide_in(self, page: Page, *names: Label) -> None:
        """Let the document of a page come in from the left, and then the answer begin."""
        page.document.shift(10 * LEFT)
        self.add(page.document)
        self.play(page.document.animate.shift(10 * RIGHT), run_time=0.8)
        self.play(FadeIn(*names), page.question.animate.show(page.begun), run_time=0.3)

    def sure(self, bars: Bars, rank: int) -> Label:
        """Return how likely the reader's answer is after a document, over its bar."""
        row = self.trace.per_doc[rank]
        top = int(np.argmax(row))
        return mark(bars, top, f"{row[top]:.0%}", DOCUMENT if top == int(self.trace.true_place) else WRONG)

    # -- chapter 7 --------------------------------------------------------------------------------------------------

    @chapter("Mixing")
    def mixing(self):
        """Average the answers, weighted by the match."""
        trace = self.trace
        count, true = len(trace.per_doc), int(trace.true_place)
        pitch = 5.1 / (count + 1)
        unit, step, left = pitch - 0.42, 0.79, -2.95
        middle = left + step * len(trace.answer_words) / 2
        looks: dict[str, Any] = {"height": unit, "step": step}
        rows, names = [], []
        for rank, doc in enumerate(trace.topk_indices):
            base = 2.6 - pitch * rank - unit
            rows.append(places(trace, trace.per_doc[rank], base=base, names=(), **looks).set_x(middle))
            name = Label(f"{trace.doc_names[int(doc)]}", size=min(theme.LABEL, max(theme.SMALL, 0.5 * unit)))
            names.append(name.scale(min(1.0, 1.55 / name.width)).move_to([-6.5, base + unit / 2, 0], aligned_edge=LEFT))
        prior = Bars(
            trace.prior, limit=1.0, length=0.8, step=pitch, thickness=min(0.5, 0.3 / pitch), role=ANSWER,
            number=".0%", number_size=theme.LABEL,
        ).move_to([-4.75, rows[0].get_center()[1] + pitch / 2, 0], aligned_edge=UP + LEFT)  # fmt: skip
        total = places(
            trace, trace.marginal, base=2.6 - pitch * count - unit, outline=True, role="TEXT", names=(), **looks,
        ).set_x(middle)  # fmt: skip
        spots = self.name_places(total, 0.95 * step)
        ground = total.copy().hide()
        match = Label("match", color=theme.SCORE, bold=True).move_to([-4.75, 2.75, 0], aligned_edge=LEFT)
        after = Label("answer after reading it", color=theme.MUTED).move_to([6.5, 2.75, 0], aligned_edge=RIGHT)
        sums = Label("the answer", size=0.26, bold=True).next_to(total, LEFT, buff=0.3, aligned_edge=UP)
        sums.align_to([-6.5, 0, 0], LEFT)
        self.say("Each document gives an answer of its own.")
        self.play(FadeIn(after, ground, *spots), run_time=0.3)
        self.play(LaggedStart(*(FadeIn(*pair) for pair in zip(rows, names, strict=True)), lag_ratio=0.4), run_time=1.4)
        self.hold(0.3)
        self.say("Average the answers, weighted by the match.")
        self.play(FadeIn(prior, match), run_time=0.5)
        shrink = [row.animate.set_values(part) for row, part in zip(rows, trace.contributions, strict=True)]
        self.play(*shrink, run_time=1.2)
        self.play(FadeIn(sums), run_time=0.2)
        pieces = self.drop(rows, total)
        peak = Label(f"{trace.answer_words[true]}: {trace.marginal[true]:.0%}", size=0.26, color=theme.SCORE, bold=True)
        peak.next_to(sums, DOWN, buff=0.22, aligned_edge=LEFT)
        self.play(FadeIn(total, peak), run_time=0.4)
        self.say("Looking back, the answer credits the document it came from.")
        self.credit(pieces.get(true, []), prior, match)
        self.finish_beat()
        self.clear_stage()
        self.many()

    def name_places(self, bars: Bars, widest: float) -> list[Label]:
        """Return the names of places under their bars, large where a document leads."""
        trace, foot = self.trace, bars.get_bottom()[1]
        led = {int(np.argmax(row)) for row in trace.per_doc}
        names = []
        for k, word in enumerate(trace.answer_words):
            size, color = (0.24, theme.TEXT) if k in led else (theme.SMALL, theme.MUTED)
            name = Label(f"{word}", size=size, color=color)
            name.scale(min(1.0, widest / name.width))
            names.append(name.move_to([bars.tip(k)[0], foot - 0.12, 0], aligned_edge=UP))
        return names

    def drop(self, rows: list[Bars], total: Bars) -> dict[int, list[Bars]]:
        """Let what can be seen of the rows fall on one pile; return the pieces that lie over each place."""
        piles: dict[int, list[Bars]] = {}
        falls = []
        for row in rows:
            for k, amount in enumerate(row.amounts):
                if amount * row.length > THINNEST:
                    pile, piece = piles.setdefault(k, []), row.bar(k)
                    foot = pile[-1].get_top() if pile else total.get_bottom()
                    landed = piece.copy().move_to([piece.get_center()[0], foot[1], 0], aligned_edge=DOWN)
                    pile.append(landed)
                    falls.append((piece, landed))
        self.add(*(piece for piece, _ in falls))
        ways = [piece.animate.move_to(landed) for piece, landed in falls]
        self.play(LaggedStart(*ways, lag_ratio=0.15), *(row.animate.recede() for row in rows), run_time=1.4)
        self.remove(*(piece for piece, _ in falls))
        self.add(*(landed for _, landed in falls))
        return piles

    def credit(self, pieces: list[Bars], prior: Bars, match: Label) -> None:
        """Let the true answer flow back to the documents: the match becomes the credit."""
        trace = self.trace
        back = [piece.copy().set_z_index(1) for piece in pieces]
        right = trace.answer_words[int(trace.true_place)]
        credit = Label(f"credit if “{right}” is right", color=theme.KEY, bold=True).move_to(match, aligned_edge=LEFT)
        self.add(*back)
        ways = [
            piece.animate(path_arc=0.6).scale(0.4).move_to(prior.tip(rank)).set_opacity(0)
            for rank, piece in enumerate(back)
        ]
        self.play(*ways, FadeOut(match), run_time=1.0)
        self.remove(*back)
        painted = prior.animate.set_values(trace.posterior).paint(slice(None), DOCUMENT)
        self.play(painted, FadeIn(credit), run_time=0.9)
        self.hold(0.5)

    def many(self) -> None:
        """Compare documents that are read one by one with documents in one prompt."""
        trace = self.trace
        ks = trace.fusion_documents
        last = min(len(ks), len(trace.accuracy_by_k)) - 1
        chart = Chart(
            7.4, 3.7, x=(0.7, 3.3), y=(0, 1.05), x_ticks=(1, 2, 3), y_ticks=(0, 0.5, 1), x_format="d", y_format=".0%",
            x_label="documents", y_label="right answers",
        ).move_to([-1.7, 0.15, 0])  # fmt: skip
        part = slice(0, last + 1)
        looks: dict[str, Any] = {"dots": 0.1, "line": theme.THICK, "drawn": 0}
        mixed = chart.curve(trace.accuracy_ks[part], trace.accuracy_by_k[part], role=DOCUMENT, **looks)
        fused = chart.curve(ks, trace.fusion_accuracy, role=WRONG, **looks)
        signs = [
            Label(words, size=0.26, color=getattr(theme, role), bold=True).next_to(
                chart.point(number, last), RIGHT, buff=0.35
            )
            for words, role, number in (
                ("read one by one,\nthen averaged", DOCUMENT, mixed), ("all in one prompt", WRONG, fused),
            )
        ]  # fmt: skip
        shares = [
            Label(f"{share:.0%}", size=0.24, color=theme.LOSS, bold=True).next_to(
                chart.point(fused, k), DOWN + LEFT, buff=0.1
            )
            for k, share in enumerate(trace.fusion_accuracy) if k
        ]  # fmt: skip
        self.say("All documents in one prompt confuse this tiny reader.")
        self.play(FadeIn(chart), run_time=0.4)
        self.play(chart.animate(rate_func=linear).draw_curve(mixed), FadeIn(signs[0]), run_time=0.8)
        self.play(chart.animate(rate_func=linear).draw_curve(fused), run_time=0.9)
        self.play(FadeIn(signs[1], *shares), run_time=0.3)
        self.hold(0.5)

    # -- chapter 8 --------------------------------------------------------------------------------------------------

    @chapter("Swap the library")
    def swap_the_library(self):
        """New facts, no training; wrong facts, wrong answer."""
        trace = self.trace
        bars = Bars(
            trace.swap_accuracy, limit=1.0, length=3.2, step=1.25, thickness=0.4, role=(MODEL, WRONG, DOCUMENT),
            number=".0%", number_size=0.3,
        ).move_to([0, 0.1, 0]).align_to([2.1, 0, 0], LEFT).hide()  # fmt: skip
        names = [
            Label(f"{name}", size=0.24, bold=True).move_to([2.1, bars.tip(k)[1] + 0.48, 0], aligned_edge=LEFT)
            for k, name in enumerate(trace.swap_names)
        ]
        title = Label("right about today’s world", size=0.24, color=theme.MUTED)
        title.move_to([2.1, 2.6, 0], aligned_edge=LEFT)
        model = Frame(4.6, 0.8, color=theme.FROZEN, fill=theme.SURFACE).move_to([-2.9, 2.35, 0])
        frozen = Label("the same frozen model", size=0.24, color=theme.FROZEN, bold=True).move_to(model)
        plug = arrow([-2.9, 1.15, 0], [-2.9, 1.85, 0], color=theme.MUTED, line=theme.THICK)
        old = self.cartridge(trace.old_doc_texts, "library A: yesterday", WRONG)
        new = self.cartridge(trace.doc_texts, "library B: today", DOCUMENT)
        slot = Frame(6.2, 3.3, color=theme.LINES).move_to([-2.9, -0.55, 0])
        empty = Label("no library", size=0.26, color=theme.MUTED).move_to(slot)
        self.say("About today, memory is mostly wrong.")
        self.play(FadeIn(model, frozen, title, names[0], slot, empty), run_time=theme.QUICK)
        self.add(bars)
        self.play(bars.animate.show(0), run_time=0.6)
        self.say("Plug in yesterday’s library, then today’s. The reader’s weights stay.")
        self.play(FadeOut(empty), run_time=0.2)
        self.slide(old, 7.6 * RIGHT, 0.7)
        self.play(FadeIn(plug, names[1]), bars.animate.show(1), run_time=0.6)
        self.hold(0.4)
        self.play(FadeOut(plug), run_time=0.2)
        self.slide(old, 7.6 * LEFT, 0.6)
        self.remove(*old)
        self.slide(new, 7.6 * RIGHT, 0.8)
        self.play(FadeIn(plug, names[2]), bars.animate.show(2), run_time=0.8)
        self.hold(1.6)
        self.finish_beat()
        self.clear_stage()
        self.wrong_document()

    def cartridge(self, texts: Any, title: str, role: str) -> list[Any]:
        """Return a library: its name and its first documents, off the stage at the left."""
        color = getattr(theme, role)
        box = Frame(6.2, 3.3, color=color, fill=theme.SURFACE).move_to([-10.5, -0.55, 0])
        name = Label(title, size=0.28, color=color, bold=True).move_to(box).shift(1.2 * UP)
        lines = [Label(f"{text}", size=0.22) for text in texts[:4]]
        for k, line in enumerate(lines):
            line.move_to(box).shift((0.5 - 0.55 * k) * UP).align_to(box.get_left() + 0.4 * RIGHT, LEFT)
        return [box, name, *lines]

    def slide(self, cartridge: list[Any], way: np.ndarray, seconds: float) -> None:
        """Push a library into its slot, or out of it."""
        self.add(*cartridge)
        self.play(*(part.animate.shift(way) for part in cartridge), run_time=seconds)

    def wrong_document(self) -> None:
        """Feed a document about something else."""
        trace = self.trace
        document = TokenRow(trace.doc_words[int(trace.wrong_doc)], roles=WRONG, size=0.22, height=0.52)
        document.move_to([0, 2.2, 0])
        about = Label("a document about something else", size=0.22, color=theme.LOSS, bold=True)
        about.next_to(document, UP, buff=0.16)
        question = question_row(trace, size=0.22, height=0.52).move_to([0, 1.5, 0])
        bars = places(trace, trace.closed_book, base=-1.42, height=1.9)
        top = int(np.argmax(trace.wrong_doc_answer))
        self.say("But a wrong document gives a confident wrong answer.")
        self.play(FadeIn(document, about, question, bars), run_time=theme.QUICK)
        self.play(bars.animate.set_values(trace.wrong_doc_answer).paint(top, WRONG), run_time=1.0)
        self.play(FadeIn(mark(bars, top, f"{trace.wrong_doc_answer[top]:.0%}", WRONG)), run_time=0.3)
        rows = [
            self.share_right(words, share, role, y)
            for words, share, role, y in (
                ("right answers, right document", trace.accuracy_hit, DOCUMENT, -2.2),
                ("right answers, wrong document", trace.accuracy_miss, WRONG, -2.62),
            )
        ]
        self.say("New facts, no training; wrong facts, wrong answer.")
        for words, bar in rows:
            self.play(FadeIn(words), run_time=0.3)
            self.add(bar)
            self.play(bar.animate.show(), run_time=0.9)

    def share_right(self, words: str, share: Any, role: str, y: float) -> tuple[Label, Bars]:
        """Return how many answers are right, as words and a bar that is still to grow."""
        color = getattr(theme, role)
        bar = Bars(share.reshape(1), limit=1.0, length=4.0, step=0.42, role=role, number=".0%", number_size=0.22)
        bar.move_to([-0.6, y, 0], aligned_edge=LEFT).hide()
        return Label(words, size=0.22, bold=True, color=color).next_to(bar, LEFT, buff=0.25), bar

    # -- loop -------------------------------------------------------------------------------------------------------

    @loop
    def find_and_read(self):
        """A question finds the documents that point its way; reading them moves the answer."""
        trace = self.trace
        circle = Circle(trace, center=(CENTER[0], -0.2))
        best = circle.best[:READ]
        title = Label("each document is an arrow", size=0.28, color=theme.KEY, bold=True).move_to([CENTER[0], 3.1, 0])
        query = circle.arrow(circle.far()).hide()
        asked, plain = (
            paper(text, QUESTION, 5.0).move_to([3.95, 1.35, 0]) for text in (trace.query_text, trace.reader_question)
        )
        bars = Bars(
            trace.closed_book, limit=1.0, length=2.7, step=0.3, role=ANSWER, number=None, names=trace.answer_words,
            name_size=0.19,
        ).move_to([0, 0.45, 0], aligned_edge=UP).align_to([3.0, 0, 0], LEFT)  # fmt: skip
        strip = [
            paper(trace.doc_texts[k], DOCUMENT, 5.0).move_to([3.95, 3.2 - 0.58 * row, 0]) for row, k in enumerate(best)
        ]
        spots = [row.get_center() for row in strip]
        read = "after reading each, averaged" if len(best) > 1 else "answer after reading"
        words = [
            Label(text, size=0.24, color=getattr(theme, role), bold=True).move_to([2.0, 0.72, 0], aligned_edge=LEFT)
            for text, role in (("answer from memory", MODEL), (read, ANSWER))
        ]
        self.add(circle.docs, title)
        self.hold(0.4)
        self.add(query)
        self.play(FadeIn(asked, bars, words[0]), query.animate.show(), run_time=0.4)
        self.play(query.animate.set_tips(trace.query_point.reshape(1, 2)), run_time=0.9)
        self.play(*self.opening(circle), run_time=0.8)
        for row, k in zip(strip, best, strict=True):
            row.scale(0.3).move_to(circle.docs.tip(k)).set_opacity(0)
        self.add(*strip)
        flights = [
            row.animate(path_arc=-0.9).scale(1 / 0.3).move_to(spot).set_opacity(1)
            for row, spot in zip(strip, spots, strict=True)
        ]
        self.play(LaggedStart(*flights, lag_ratio=0.15), FadeOut(asked), run_time=0.9)
        self.play(FadeIn(plain), run_time=0.2)
        self.play(bars.animate.set_values(trace.marginal), FadeOut(words[0]), run_time=0.7)
        self.play(FadeIn(words[1]), run_time=0.2)
        self.hold(1.3)
        closing = [circle.wedge.animate.set_angles(trace.wedge[0])] if circle.is_flat else []
        gone = FadeOut(*strip, plain, bars, words[1])
        self.play(*closing, gone, circle.docs.animate.lead(), query.animate.hide(), run_time=0.5)
        self.remove(circle.wedge, query)
        self.hold(0.2)


def _order(scores: Any) -> list[int]:
    """Return the places of the scores, the highest first."""
    return np.argsort(-np.asarray(scores, dtype=float), kind="stable").tolist()


def _ranks(scores: Any) -> list[int]:
    """Return the rank of each score, 0 for the highest."""
    return np.argsort(_order(scores)).tolist()
