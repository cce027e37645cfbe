"""The runs behind the RAG video: a library in which everything has moved, a retriever, and the tiny LM as reader."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from internals_math import tiny_lm
from internals_math.rag import (
    CELLS,
    LEARNING_RATE,
    TRAIN_STEPS,
    TRAIN_TEMPERATURE,
    Config,
    Embedders,
    Systems,
    document_posterior,
    rag_sequence_log_prob,
    rag_token_log_prob,
    retrieval_prior,
)
from internals_math.retrieval import (
    bm25_by_word,
    bm25_scores,
    build_ivf,
    contrastive_gradients,
    in_batch_contrastive_loss,
    index_bytes,
    ivf_search,
    mean_reciprocal_rank,
    normalize_embeddings,
    recall_at_k,
    retrieve,
    similarity,
    tf_idf,
)
from internals_math.tiny_lm.stories import PLACES_BY, world
from internals_math.tiny_lm.vocabulary import CAST, PLACES, PREPOSITIONS, WORDS, id_of

# Other words for the owners. The reader has never seen them: they live in the retriever's vocabulary alone.
PARAPHRASES = {
    "fox": "vixen", "owl": "hooter", "cat": "kitten", "dog": "puppy", "hen": "chicken", "mouse": "rodent",
    "crab": "crustacean", "seal": "selkie", "duck": "drake", "whale": "leviathan", "pirate": "buccaneer",
    "captain": "skipper",
}  # fmt: skip
VOCABULARY = {word: index for index, word in enumerate((*WORDS, *PARAPHRASES.values()))}
SNAPSHOTS = 30
SHOWN_SNAPSHOT = 7  # the arrows have begun to part, and still have somewhere to go
SHOWN_DOCUMENTS = 6  # where there is no room for all
MOST_MIXED = 12  # documents


# -- the library -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """Where a thing of somebody is: in the world that the model learned (A) and after everything has moved (B)."""

    owner: str
    thing: str
    learned: str  # "prep the place"
    moved: str

    def text(self, where: str) -> str:
        """Return the fact as a document says it."""
        return f"the {self.thing} of the {self.owner} is {where} ."

    def question(self, owner: str | None = None) -> str:
        return f"where is the {self.thing} of the {owner or self.owner} ?"


@dataclass(frozen=True)
class Library:
    """One document for each fact, in both worlds, and two ways to ask for it."""

    facts: tuple[Fact, ...]

    def texts(self, which: str = "B") -> list[str]:
        return [fact.text(fact.moved if which == "B" else fact.learned) for fact in self.facts]

    def questions(self, paraphrased: bool) -> list[str]:
        return [fact.question(PARAPHRASES[fact.owner] if paraphrased else None) for fact in self.facts]

    def places(self, which: str = "B") -> Int[Tensor, " M"]:
        """Return the place of each fact as an index into PLACES."""
        wheres = [fact.moved if which == "B" else fact.learned for fact in self.facts]
        return torch.tensor([PLACES.index(where.split()[-1]) for where in wheres])


def make_library(config: Config) -> Library:
    """Return one fact an owner, the fox's key first, and a second one an owner if there are more than twelve."""
    known, unknown = world().known, world().unknown
    owners = (*CAST["farm"], *CAST["sea"])
    by_owner = {
        owner: [pair for facts in (known, unknown) for pair in facts if pair[0] == owner] for owner in owners
    }  # known ones first: there the model has something to remember
    rng = random.Random(config.seed)
    facts: list[Fact] = []
    for turn in range(2):
        for domain in CAST:
            pairs = [by_owner[owner][turn] for owner in CAST[domain]]
            learned = [(known | unknown)[pair] for pair in pairs]
            facts += map(Fact, *zip(*pairs, strict=True), learned, moved_places(learned, domain, rng))
    return Library(tuple(facts[: config.n_docs]))


def moved_places(learned: Sequence[str], domain: str, rng: random.Random) -> list[str]:
    """Return a new `prep the place` for each old one: every place of the domain once, and nobody's old one."""
    places = list(dict.fromkeys(place for options in PLACES_BY[domain].values() for place in options))
    while any(where.split()[-1] == place for where, place in zip(learned, places, strict=True)):
        rng.shuffle(places)
    preps = [[prep for prep, options in PLACES_BY[domain].items() if place in options] for place in places]
    return [f"{rng.choice(options)} the {place}" for options, place in zip(preps, places, strict=True)]


def word_counts(texts: Sequence[str]) -> Float[Tensor, "M V"]:
    """Return how often each word of the retriever's vocabulary stands in each text."""
    counts = torch.zeros(len(texts), len(VOCABULARY))
    for row, text in enumerate(texts):
        for word in text.split():
            counts[row, VOCABULARY[word]] += 1
    return counts


def asked(library: Library) -> tuple[list[str], Int[Tensor, " Q"]]:
    """Return all questions, by name and by paraphrase, and the document that answers each."""
    return library.questions(False) + library.questions(True), torch.arange(len(library.facts)).repeat(2)


# -- the retriever -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Retriever:
    """A trained table of word vectors, and what its documents and questions looked like on the way."""

    table: Float[Tensor, "V e"]
    steps: Int[Tensor, " S"]
    docs: Float[Tensor, "S M e"]
    questions: Float[Tensor, "S M e"]  # by name or by paraphrase, as the Config says
    losses: Float[Tensor, " S"]  # of these

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "N e"]:
        """Return the mean of a text's word vectors, scaled to length 1."""
        return mean_word_vector(self.table, word_counts(texts))


def mean_word_vector(table: Float[Tensor, "V e"], counts: Float[Tensor, "N V"]) -> Float[Tensor, "N e"]:
    """Return the mean of each text's word vectors, scaled to length 1."""
    return normalize_embeddings(counts @ table / counts.sum(dim=1, keepdim=True))


def start_table(width: int, generator: torch.Generator) -> Float[Tensor, "V e"]:
    """Return the tiny LM's own word vectors in their main directions; words it does not know start at random."""
    words = token_embeddings()
    _, _, directions = torch.linalg.svd(words, full_matrices=False)
    known = words @ directions[:width].T  # (112, e)
    fresh = torch.randn(len(PARAPHRASES), width, generator=generator) * known.std()
    return torch.cat([known, fresh])


def token_embeddings() -> Float[Tensor, "V D"]:
    """Return the word vectors of the tiny LM, centered: their common part tells no word from another."""
    words = tiny_lm.load("base").model.embed_tokens.weight.detach()
    return words - words.mean(dim=0)


def train_retriever(library: Library, config: Config) -> Retriever:
    """Train the word vectors so that a question points where its document points, whichever word names the owner."""
    generator = torch.Generator().manual_seed(config.seed)
    table = start_table(config.embed_dim, generator).requires_grad_()
    optimizer = torch.optim.Adam([table], lr=LEARNING_RATE)
    docs = word_counts(library.texts())
    both = torch.stack([word_counts(library.questions(paraphrased)) for paraphrased in (False, True)])  # (2, M, V)
    snapshots = [max(i, round(TRAIN_STEPS * (i / (SNAPSHOTS - 1)) ** 2)) for i in range(SNAPSHOTS)]
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(TRAIN_STEPS + 1):
        if step in snapshots:
            with torch.no_grad():
                vectors = mean_word_vector(table, docs), mean_word_vector(table, both[int(config.use_paraphrase)])
                loss = in_batch_contrastive_loss(vectors[1], vectors[0], temperature=TRAIN_TEMPERATURE)
                kept.append((*vectors, loss))
        if step == TRAIN_STEPS:
            break
        kinds = torch.randint(2, (len(docs),), generator=generator)
        questions = mean_word_vector(table, both[kinds, torch.arange(len(docs))])
        loss = in_batch_contrastive_loss(questions, mean_word_vector(table, docs), temperature=TRAIN_TEMPERATURE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stacked = [torch.stack(parts) for parts in zip(*kept, strict=True)]
    return Retriever(table.detach(), torch.tensor(snapshots), *stacked)


# -- the reader --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def place_probs(prompts: Sequence[str]) -> Float[Tensor, "N W"]:
    """Return p(place | prompt), summed over the four prepositions of `[prep] the [place]`; all prompts equally long."""
    model = tiny_lm.load("base")
    preps, the = torch.tensor([id_of(prep) for prep in PREPOSITIONS]), id_of("the")
    places = torch.tensor([id_of(place) for place in PLACES])
    ids = torch.tensor([tiny_lm.encode(prompt) for prompt in prompts])  # (N, T)
    count, length = ids.shape
    rows = ids.repeat_interleave(len(preps), dim=0)
    endings = torch.stack([preps, torch.full_like(preps, the)], dim=1).repeat(count, 1)
    logits = torch.cat([model(part) for part in torch.cat([rows, endings], dim=1).split(512)])
    probs = torch.softmax(logits[:, length - 1 :], dim=-1).unflatten(0, (count, len(preps)))  # (N, 4, 3, V)
    prefix = probs[:, torch.arange(len(preps)), 0, preps] * probs[:, :, 1, the]  # (N, 4)
    return (prefix[..., None] * probs[:, :, 2, places]).sum(dim=1)


def prompt(documents: Sequence[str], question: str) -> str:
    """Return documents and a question as the base corpus writes open-book lines."""
    return " ".join([*(f"fact : {document}" for document in documents), question])


@dataclass(frozen=True, eq=False)
class Readings:
    """p(place) for every question of the library: from memory, and after reading every document of both worlds."""

    closed: Float[Tensor, "M W"]
    open: dict[str, Float[Tensor, "M M W"]]  # world -> question, document


def read_everything(library: Library) -> Readings:
    """Let the tiny LM answer every question with no document and with each."""
    questions, count = library.questions(False), len(library.facts)
    readings = {
        which: place_probs([prompt([text], q) for q in questions for text in library.texts(which)]).unflatten(
            0, (count, count)
        )
        for which in ("A", "B")
    }
    return Readings(place_probs(questions), readings)


@torch.no_grad()
def answer_log_probs(prompts: Sequence[str], answer: str) -> Float[Tensor, "k T"]:
    """Return ln p of each token of an answer after each prompt; all prompts equally long."""
    answer_ids = tiny_lm.encode(answer, bos=False)
    ids = torch.tensor([tiny_lm.encode(text) + answer_ids for text in prompts])
    log_probs = torch.log_softmax(tiny_lm.load("base")(ids), dim=-1)[:, -len(answer_ids) - 1 : -1]
    return log_probs[:, torch.arange(len(answer_ids)), answer_ids]


def accuracy(probs: Float[Tensor, "N W"], places: Int[Tensor, " N"]) -> float:
    """Return the share of rows whose most likely place is the right one."""
    return float((probs.argmax(dim=-1) == places).double().mean())


# -- fields of the trace -----------------------------------------------------------------------------------------------


def library_fields(library: Library, readings: Readings, config: Config) -> dict[str, Any]:
    """Return the texts, and what the model remembers."""
    gold = config.query_index
    fact, closed = library.facts[gold], readings.closed[gold]
    old, true = int(library.places("A")[gold]), int(library.places("B")[gold])
    query = library.questions(config.use_paraphrase)[gold]
    return {
        "doc_texts": tuple(library.texts()),
        "old_doc_texts": tuple(library.texts("A")),
        "doc_words": tuple(tuple(text.split()) for text in library.texts()),
        "doc_names": tuple(f"{f.owner}’s {f.thing}" for f in library.facts),
        "query_text": query,
        "reader_question": fact.question(),
        "query_words": tuple(query.split()),
        "owner": fact.owner,
        "paraphrase": PARAPHRASES[fact.owner],
        "gold": gold,
        "answer_words": PLACES,
        "closed_book": closed,
        "old_place": old,
        "true_place": true,
        "closed_book_old": float(closed[old]),
        "closed_book_true": float(closed[true]),
    }


def lexical_fields(library: Library, config: Config) -> dict[str, Any]:
    """Return what word matching makes of the question."""
    counts, gold = word_counts(library.texts()), config.query_index
    by_name, shown = (word_ids(library.questions(kind)[gold]) for kind in (False, config.use_paraphrase))
    scores, words = bm25_scores(shown, counts), bm25_by_word(shown, counts)
    first = scores.clone()
    first[gold] += 1e-3  # before documents of an equal score
    return {
        "lexical_words": words,
        "lexical_running": words.cumsum(dim=0),
        "lexical_scores": scores,
        "lexical_scores_by_name": bm25_scores(by_name, counts),
        "word_matches": counts[:, shown] > 0,
        "lexical_best": scores == scores.max(),
        "lexical_shown": retrieve(first[None], SHOWN_DOCUMENTS)[1][0].sort().values,
    }


def word_ids(text: str) -> Int[Tensor, " words"]:
    """Return the ids of a text's words in the retriever's vocabulary."""
    return torch.tensor([VOCABULARY[word] for word in text.split()])


def plane(retriever: Retriever) -> Float[Tensor, "e 2"]:
    """Return the plane that is drawn: all of it in two dimensions, else the documents' two main directions."""
    docs = retriever.docs[-1]
    if docs.shape[1] == 2:
        return torch.eye(2)
    return torch.linalg.svd(docs, full_matrices=False)[2][:2].T


def training_fields(retriever: Retriever, config: Config) -> dict[str, Any]:
    """Return the vectors during training, and one step of it taken apart."""
    flat = plane(retriever)
    docs, questions = retriever.docs[SHOWN_SNAPSHOT], retriever.questions[SHOWN_SNAPSHOT]
    scores = questions @ docs.T / TRAIN_TEMPERATURE
    probs = torch.softmax(scores, dim=-1)
    scale = TRAIN_TEMPERATURE * len(docs)
    gradient, _ = contrastive_gradients(questions, docs, temperature=TRAIN_TEMPERATURE)
    pull = docs / scale
    push = -gradient - pull
    final = retriever.docs[-1]
    return {
        "doc_vectors": final,
        "query_vector": retriever.questions[-1, config.query_index],
        "doc_points": final @ flat,
        "query_point": retriever.questions[-1, config.query_index] @ flat,
        "plane_share": float((final @ flat).square().sum() / final.square().sum()),
        "training_steps": retriever.steps,
        "training_docs": retriever.docs @ flat,
        "training_queries": retriever.questions @ flat,
        "training_loss": retriever.losses,
        "chance_loss": math.log(len(docs)),
        "shown_step": SHOWN_SNAPSHOT,
        "batch_scores": scores,
        "batch_softmax": probs,
        "pull": pull @ flat,
        "push": push @ flat,
        "pull_turn": _across(pull, questions) @ flat,
        "push_turn": _across(push, questions) @ flat,
        "rivals": probs.masked_fill(torch.eye(len(docs), dtype=torch.bool), math.nan),
    }


def _across(vectors: Float[Tensor, "M e"], units: Float[Tensor, "M e"]) -> Float[Tensor, "M e"]:
    """Return the part of each vector at a right angle to its unit vector."""
    return vectors - (vectors * units).sum(dim=1, keepdim=True) * units


def search_fields(library: Library, retriever: Retriever, config: Config) -> dict[str, Any]:
    """Return the exact search of the shown question, and how good words and vectors are over all questions."""
    docs, query = retriever.docs[-1], retriever.questions[-1, config.query_index]
    flat = plane(retriever)
    cosines = similarity(query[None], docs)[0]
    angles = torch.acos(cosines.clamp(-1, 1))
    top, indices = (part[0] for part in retrieve(cosines[None], config.top_k))
    query_angle = _angle(query @ flat)
    questions, gold = asked(library)
    dense = similarity(retriever.encode(questions), docs)
    lexical = lexical_scores(library)
    ks = torch.arange(1, len(docs) + 1)
    return {
        "cosines": cosines,
        "angles": angles,
        "doc_angles": _angle(docs @ flat),
        "query_angle": float(query_angle),
        "wedge": query_angle + angles[indices][:, None] * torch.tensor([-1.0, 1.0]),
        "topk_indices": indices,
        "topk_cosines": top,
        "prior": retrieval_prior(top, temperature=config.temperature),
        "recall_ks": ks,
        "recall_dense": torch.tensor([recall_at_k(retrieve(dense, int(k))[1], gold) for k in ks]),
        "recall_lexical": expected_recall(lexical, gold, ks),
    }


def _angle(points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    return torch.atan2(points[..., 1], points[..., 0])


def expected_recall(
    scores: Float[Tensor, "Q M"], gold: Int[Tensor, " Q"], ks: Int[Tensor, " K"]
) -> Float[Tensor, " K"]:
    """Return recall at each k if equal scores are put in random order, as word matching leaves many of them."""
    own = scores.gather(1, gold[:, None])
    above, equal = (scores > own).sum(dim=1), (scores == own).sum(dim=1)
    return ((ks[:, None] - above) / equal).clamp(0, 1).mean(dim=1)


def lexical_scores(library: Library) -> Float[Tensor, "Q M"]:
    """Return the BM25 scores of all questions."""
    counts = word_counts(library.texts())
    return torch.stack([bm25_scores(word_ids(question), counts) for question in asked(library)[0]])


def ivf_fields(library: Library, retriever: Retriever, config: Config) -> dict[str, Any]:
    """Return the cells, and what searching few of them finds and costs."""
    docs, flat = retriever.docs[-1], plane(retriever)
    generator = torch.Generator().manual_seed(config.seed)
    index = build_ivf(docs, CELLS, generator=generator)
    texts = asked(library)[0]
    questions = retriever.encode(texts)
    exact = retrieve(similarity(questions, docs), config.top_k)[1]  # (Q, k)
    probes = range(1, CELLS + 1)
    searches = [[ivf_search(query, index, docs, config.top_k, p) for query in questions] for p in probes]
    found = torch.stack(
        [torch.stack([torch.isin(e, hit) for e, (hit, _) in zip(exact, row, strict=True)]) for row in searches]
    )  # (P, Q, k)
    cost = torch.tensor([[spent for _, spent in row] for row in searches])  # (P, Q)
    shown = config.query_index + config.use_paraphrase * len(docs)
    border = int(found[0].sum(dim=1).argmin())
    visited = retrieve(similarity(questions[shown][None], index.centroids), config.n_probe)[1][0]
    return {
        "ivf_centroids": index.centroids,
        "ivf_points": index.centroids @ flat,
        "ivf_assignments": index.assignments,
        "ivf_sectors": sectors(index.centroids),
        "ivf_recall": found.float().mean(dim=(1, 2)),
        "ivf_cost": cost.float().mean(dim=1),
        "ivf_visited": visited,
        "ivf_scored": torch.isin(index.assignments, visited),
        "ivf_topk": ivf_search(questions[shown], index, docs, config.top_k, config.n_probe)[0],
        "ivf_found": found[:, shown],
        "ivf_found_count": found[:, shown].sum(dim=1),
        "ivf_query_cost": cost[:, shown],
        "border_index": border,
        "border_text": texts[border],
        "border_point": questions[border] @ flat,
        "border_cells": retrieve(similarity(questions[border][None], index.centroids), CELLS)[1][0],
        "border_topk": exact[border],
        "border_found": found[:, border],
        "border_found_count": found[:, border].sum(dim=1),
        "border_cost": cost[:, border],
        "exact_cost": len(docs),
    }


def sectors(centroids: Float[Tensor, "cells e"]) -> Float[Tensor, "cells 2"]:
    """Return first and last angle of each cell on the circle, halfway to its neighbors; NaN in more dimensions."""
    if centroids.shape[1] != 2:
        return torch.full((len(centroids), 2), math.nan)
    angles = _angle(centroids)
    order = angles.argsort()
    ordered = angles[order]
    following = torch.cat([ordered[1:], ordered[:1] + 2 * math.pi])
    last = (ordered + following) / 2
    first = torch.cat([last[-1:] - 2 * math.pi, last[:-1]])
    return torch.stack([first, last], dim=1)[order.argsort()]


def reading_fields(library: Library, retriever: Retriever, readings: Readings, config: Config) -> dict[str, Any]:
    """Return what the reader makes of the retrieved documents, one by one and together."""
    gold, question = config.query_index, library.facts[config.query_index].question()
    true, docs = int(library.places()[gold]), library.texts()
    cosines = similarity(retriever.questions[-1, gold][None], retriever.docs[-1])
    top, indices = (part[0] for part in retrieve(cosines, config.top_k))
    prior = retrieval_prior(top, temperature=config.temperature)
    per_doc = readings.open["B"][gold, indices]  # (k, W)
    answer = f"{library.facts[gold].moved} ."
    steps = answer_log_probs([prompt([docs[int(i)]], question) for i in indices], answer)  # (k, T)
    contributions = prior[:, None] * per_doc
    marginal = contributions.sum(dim=0)
    closed = -math.log(float(readings.closed[gold, true]))
    opened = -math.log(float(marginal[true]))
    return {
        "per_doc": per_doc,
        **_attention([docs[int(i)] for i in indices], question),
        "marginal": marginal,
        "contributions": contributions,
        "posterior": document_posterior(prior.log(), per_doc[:, true].log()),
        "answer_tokens": tuple(answer.split()),
        "answer_log_prob_sequence": float(rag_sequence_log_prob(prior.log(), steps)),
        "answer_log_prob_token": float(rag_token_log_prob(prior.log(), steps)),
        "surprise_closed": closed,
        "surprise_open": opened,
        "information_gain": closed - opened,
        **mixtures(library, retriever, readings, config),
        "fusion_documents": torch.tensor([1, 2, 3]),
        "fusion_accuracy": torch.tensor([fusion_accuracy(library, extra, config.seed) for extra in range(3)]),
    }


@torch.no_grad()
def _attention(documents: Sequence[str], question: str) -> dict[str, Any]:
    """Return where the last token before the place looks, in the head that looks at the best document's place most."""
    words = [document.split() for document in documents]  # … is [prep] the [place] .
    texts = [f"{prompt([document], question)} {end[-4]} the" for document, end in zip(documents, words, strict=True)]
    ids = [tiny_lm.encode(text) for text in texts]
    (place,) = {row.index(id_of(end[-2])) for row, end in zip(ids, words, strict=True)}
    _, seen = tiny_lm.load("base")(torch.tensor(ids), record=("weights",))
    weights = seen["weights"][:, :, :, -1]  # (L, k, H, T)
    layer, head = divmod(int(weights[:, 0, :, place].argmax()), weights.shape[2])
    attention = weights[layer, :, head]
    return {
        "reader_tokens": tuple(tiny_lm.tokens(row) for row in ids),
        "reader_attention": attention,
        "reader_layer": layer,
        "reader_head": head,
        "reader_place": place,
        "reader_place_weight": torch.stack([row[place] for row in attention]),
    }


def mixtures(library: Library, retriever: Retriever, readings: Readings, config: Config) -> dict[str, Any]:
    """Return how good and how sure the mixture over the best 1, 2 … documents is, over all questions."""
    questions, gold = asked(library)
    scores, places = similarity(retriever.encode(questions), retriever.docs[-1]), library.places()[gold]
    ks = range(1, min(len(library.facts), MOST_MIXED) + 1)
    right, sure = [], []
    for k in ks:
        top, indices = retrieve(scores, k)
        prior = retrieval_prior(top, temperature=config.temperature)
        mixed = (prior[..., None] * readings.open["B"][gold[:, None], indices]).sum(dim=1)
        right.append(accuracy(mixed, places))
        sure.append(mixed.gather(1, places[:, None]).mean())
    return {
        "accuracy_ks": torch.tensor(list(ks)),
        "accuracy_by_k": torch.tensor(right),
        "confidence_by_k": torch.stack(sure),
    }


def fusion_accuracy(library: Library, extra: int, seed: int) -> float:
    """Return the accuracy with the right document and `extra` others in one prompt, in random order."""
    rng = random.Random(seed)
    docs, prompts = library.texts(), []
    for row, question in enumerate(library.questions(False)):
        others = rng.sample([i for i in range(len(docs)) if i != row], extra)
        chosen = [row, *others]
        rng.shuffle(chosen)
        prompts.append(prompt([docs[i] for i in chosen], question))
    return accuracy(place_probs(prompts), library.places())


def swap_fields(library: Library, retriever: Retriever, readings: Readings, config: Config) -> dict[str, Any]:
    """Return what another library changes, and what a wrong document does."""
    questions, gold = asked(library)
    vectors, places = retriever.encode(questions), library.places()
    answers = {
        which: readings.open[which][
            gold, retrieve(similarity(vectors, retriever.encode(library.texts(which))), 1)[1][:, 0]
        ]
        for which in ("A", "B")
    }
    count = len(places)
    given = readings.open["B"].argmax(dim=-1)  # (question, document) -> place
    wrong = ~torch.eye(count, dtype=torch.bool)
    order = retrieve(similarity(retriever.questions[-1, config.query_index][None], retriever.docs[-1]), count)[1][0]
    elsewhere = [int(i) for i in order if places[i] != places[config.query_index]]
    return {
        "swap_names": ("from memory", "with library A", "with library B"),
        "swap_accuracy": torch.tensor(
            [accuracy(readings.closed, places), *(accuracy(answers[which], places[gold]) for which in ("A", "B"))]
        ),
        "accuracy_hit": accuracy(readings.open["B"][torch.arange(count), torch.arange(count)], places),
        "accuracy_miss": float((given == places[:, None])[wrong].double().mean()),
        "miss_copies": float((given == places[None])[wrong].double().mean()),
        "wrong_doc": elsewhere[0],
        "wrong_doc_answer": readings.open["B"][config.query_index, elsewhere[0]],
        "systems": systems(library, retriever, readings),
    }


def systems(library: Library, retriever: Retriever, readings: Readings) -> Systems:
    """Return recall and accuracy of words and of vectors in front of the same reader."""
    questions, gold = asked(library)
    rows = {
        "words (BM25)": lexical_scores(library),
        "vectors": similarity(retriever.encode(questions), retriever.docs[-1]),
    }
    right = readings.open["B"].argmax(dim=-1)[gold] == library.places()[gold][:, None]  # (Q, M)
    table = []
    for scores in rows.values():
        best = (scores == scores.amax(dim=1, keepdim=True)).double()
        chosen = best / best.sum(dim=1, keepdim=True)  # equal scores: any of them
        hit = torch.nn.functional.one_hot(gold, scores.shape[1]) * chosen
        miss = chosen - hit
        shares = [(right * part).sum() / part.sum() for part in (hit, miss, chosen)]  # 0 / 0 is NaN
        table.append(torch.stack([hit.sum() / len(gold), *shares]))
    recall, accuracy_hit, accuracy_miss, accuracy = torch.stack(table, dim=1).float()
    return Systems(tuple(rows), recall, accuracy_hit, accuracy_miss, accuracy)


@torch.no_grad()
def embedders() -> Embedders:
    """Return how well untrained representations find one of the 48 facts that were never told, by its question."""
    pairs = world().unknown.items()
    docs = [f"the {thing} of the {owner} is {where} ." for (owner, thing), where in pairs]
    questions = [f"where is the {thing} of the {owner} ?" for (owner, thing), _ in pairs]
    counts = [word_counts(texts) for texts in (docs, questions)]
    model, words = tiny_lm.load("base"), len(WORDS)

    means = [count[:, :words] @ model.model.embed_tokens.weight / count.sum(dim=1, keepdim=True) for count in counts]

    def states(texts: Sequence[str]) -> Tensor:
        ids = torch.tensor([tiny_lm.encode(text) for text in texts])
        return model(ids, record=("residual",))[1]["residual"][-1].mean(dim=1)

    both = tf_idf(torch.cat(counts))
    rows = {
        "words (tf-idf)": [both[: len(docs)], both[len(docs) :]],
        # all documents share most of their words, and so do all questions: without that common part they differ
        "the LM's word vectors, centered": [part - part.mean(dim=0) for part in means],
        "the LM's word vectors": means,
        "the LM's last hidden state": [states(docs), states(questions)],
    }
    gold = torch.arange(len(docs))
    scores = [similarity(queries, documents) for documents, queries in rows.values()]
    return Embedders(
        name=tuple(rows),
        recall_at_1=torch.tensor([recall_at_k(retrieve(s, 1)[1], gold) for s in scores]),
        mean_reciprocal_rank=torch.tensor([mean_reciprocal_rank(s, gold) for s in scores]),
    )


def published_sizes() -> dict[str, int]:
    """Return what the RAG paper's system weighs (its appendix), and its search over Wikipedia's passages (DPR)."""
    encoder, generator, passages, width = 110_000_000, 406_000_000, 21_015_324, 768
    return {
        "question_encoder": encoder,
        "document_encoder": encoder,
        "generator": generator,
        "parameters": 2 * encoder + generator,
        "passages": passages,
        "width": width,
        "index_bytes": index_bytes(passages, width),
        "search_flops": 2 * passages * width,  # of one exact search
    }
