"""The stages of the RAG video: the bars over the places, a text before the reader, the circle of documents."""

from typing import Any

import numpy as np
from manim import DOWN, LEFT, RIGHT, UP

from scenes.kit import theme
from scenes.kit.bars import Bars
from scenes.kit.fan import Fan
from scenes.kit.label import Label
from scenes.kit.links import Links
from scenes.kit.shapes import Frame
from scenes.kit.token_row import TokenRow
from scenes.kit.traced import Traced
from scenes.kit.vector_plane import VectorPlane

# What the colors mean in this video.
QUESTION, DOCUMENT, ANSWER, WRONG, MODEL, CELL = "QUERY", "KEY", "SCORE", "LOSS", "FROZEN", "LATENT"
RADIUS, INNER = 2.1, 0.72  # of the circle, and the share of it that a question's arrow reaches
CENTER = (-2.55, -0.1)  # of the circle
EDGE = 6.6  # of the stage, at both sides
STEP = 1.06  # from place to place
THINNEST = 0.02  # of a bar that can be seen


def places(trace: Any, values: Traced, *, base: float, height: float, step: float = STEP, **looks: Any) -> Bars:
    """Return a bar over the name of each place; a bar of `height` is certain."""
    looks = {"role": ANSWER, "names": trace.answer_words} | looks
    bars = Bars(values, direction="up", limit=1.0, length=height, step=step, number=None, **looks)
    return bars.move_to([0, base, 0], aligned_edge=DOWN)


def mark(bars: Bars, index: int, text: str, role: str) -> Label:
    """Return words over a bar."""
    label = Label(text, size=0.26, color=getattr(theme, role), bold=True).next_to(bars.tip(index), UP, buff=0.14)
    return keep_inside(label)


def keep_inside(thing: Any) -> Any:
    """Shift what stands beyond a side of the stage back onto it."""
    beyond = max(0.0, thing.get_right()[0] - EDGE) - max(0.0, -EDGE - thing.get_left()[0])
    return thing.shift(beyond * LEFT)


def clear_of(label: Label, other: Label) -> Label:
    """Lift a label over another one that stands in its way."""
    (x, y, _), (other_x, other_y, _) = label.get_center(), other.get_center()
    is_beside = abs(x - other_x) > (label.width + other.width) / 2
    is_apart = abs(y - other_y) > (label.height + other.height) / 2
    return label if is_beside or is_apart else label.move_to([x, other.get_top()[1] + 0.15, 0], aligned_edge=DOWN)


def paper(text: Any, role: str, widest: float) -> TokenRow:
    """Return a whole text as one tile that is not wider than there is room."""
    row = TokenRow((text,), roles=role, size=0.22, height=0.52)
    return row.scale(min(1.0, widest / row.width))


def heading(bars: Bars, words: str, busy: int) -> Label:
    """Return the title of bars over places, at the end where no tall bar is: `busy` is the place of one."""
    is_right = busy < len(bars.amounts) / 2
    label = Label(words, size=0.24, color=theme.MUTED).next_to(bars, UP, buff=0.2)
    return label.align_to(bars, RIGHT if is_right else LEFT)


class Page:
    """What the reader reads: a document above the question, and the start of the answer; and where it looks.

    Args:
        rank: of the retrieved document.
    """

    def __init__(self, trace: Any, rank: int = 0, *, top: float = 2.5) -> None:
        tokens, place = trace.reader_tokens[rank], int(trace.reader_place)
        end = place + 2  # of the document, its stop included
        self.document = TokenRow(tokens[1:end], roles=DOCUMENT, size=0.22, height=0.52).move_to([0, top, 0])
        asked = [str(token) for token in tokens[end:]].index("?") + 1  # tiles of the question; the rest answers
        self.begun = slice(asked, None)  # the start of the answer: not there at first
        roles = [QUESTION] * asked + [ANSWER] * (len(tokens) - end - asked)
        self.question = TokenRow(tokens[end:], size=0.22, height=0.52, roles=roles)
        self.question.move_to([0, top - 1.3, 0])
        for row in (self.document, self.question):
            row.align_to([-6.5, 0, 0], LEFT)
        last = self.question.tile_center(-1) + 0.26 * UP
        ends = [self.document.tile_center(k) + 0.26 * DOWN for k in range(len(self.document.tokens))]
        self.links = Links(trace.reader_attention[rank, 1:end], [last], ends, limit=1.0, role="ATTENTION", line=0.1)
        place = place - 1  # of the document's place among its tiles
        self.ring = Frame.around(self.document.tile(place), pad=0.03, color=theme.SCORE, line=theme.THICK)
        self.names = [
            Label(words, size=0.22, color=getattr(theme, role), bold=True).next_to(row, RIGHT, buff=0.3)
            for words, role, row in (
                ("retrieved document", DOCUMENT, self.document),
                ("question", QUESTION, self.question),
            )
        ]
        so_far = Label("and answer so far", size=0.22, color=theme.SCORE, bold=True)
        self.names.append(so_far.next_to(self.names[1], RIGHT, buff=0.12))
        self.question.hide(self.begun)


def question_row(trace: Any, **looks: Any) -> TokenRow:
    """Return the reader's question alone."""
    tokens = trace.reader_tokens[0][int(trace.reader_place) + 2 : -2]
    return TokenRow(tokens, **({"roles": QUESTION, "size": 0.24, "height": 0.56} | looks))


class Circle:
    """The arrows of all documents, of one question, and the wedge around it; cells, if vectors have two numbers."""

    def __init__(self, trace: Any, *, center: Any = CENTER, radius: float = RADIUS) -> None:
        self.trace, self.radius = trace, radius
        self.center = np.array([*center, 0.0])
        count = len(trace.doc_points)
        self.docs = VectorPlane(
            trace.doc_points, [DOCUMENT] * count, radius=radius, limit=1.0, line=theme.LINE, names=trace.doc_names
        ).label()  # fmt: skip
        self.docs.move_to(self.center)
        self.is_flat = trace.doc_vectors.shape[1] == 2
        self.wedge = Fan(trace.wedge[0], radius=radius, role=ANSWER).move_to(self.center)
        self.best = [int(k) for k in trace.topk_indices]

    def arrow(self, tip: Traced) -> VectorPlane:
        """Return the arrow of a question."""
        plane = VectorPlane(tip, [QUESTION], radius=INNER * self.radius, limit=1.0, line=theme.THICK, circle=False)
        return plane.move_to(self.center).set_z_index(1)

    def far(self) -> Traced:
        """Return the tip of the document that is least like the question, from where its arrow swings in."""
        worst = int(np.argmin(self.trace.cosines))
        return self.trace.doc_points[worst : worst + 1]

    def cells(self) -> list[Fan]:
        """Return the sectors of the cells, all of them faint."""
        if not self.is_flat:
            return []
        fans = [Fan(angles, radius=self.radius, role=CELL) for angles in self.trace.ivf_sectors]
        return [fan.move_to(self.center).recede().set_z_index(-1) for fan in fans]

    def centers(self) -> VectorPlane:
        """Return the arrows of the cells' centers."""
        tips = self.trace.ivf_points
        plane = VectorPlane(tips, [CELL] * len(tips), radius=0.5 * self.radius, limit=1.0, circle=False)
        return plane.move_to(self.center)


def legend(pairs: list[tuple[str, str]], *, left: float, top: float) -> list[Label]:
    """Return what colors mean, one below the other."""
    labels = [Label(words, size=0.24, color=getattr(theme, role), bold=True) for words, role in pairs]
    for k, label in enumerate(labels):
        label.move_to([left, top - 0.5 * k, 0], aligned_edge=LEFT)
    return labels


def beside(thing: Any, words: str) -> Label:
    """Return muted words at the side of a thing that is nearer to the middle."""
    is_left = thing.get_center()[0] < 0
    return Label(words, color=theme.MUTED).next_to(thing, RIGHT if is_left else LEFT, buff=0.2)
