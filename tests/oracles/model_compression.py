"""torch's pruning and losses, autograd, SciPy's sparse matrices, scikit-learn's k-means, a heap's Huffman code."""

import heapq

import numpy as np
import scipy.sparse
import scipy.stats
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from internals_math.model_compression import (
    apply_mask,
    distillation_grad,
    distillation_loss,
    entropy_bits,
    global_magnitude_masks,
    huffman_code_lengths,
    huffman_mean_length,
    kmeans_1d,
    magnitude_mask,
    random_mask,
    soften,
    sparse_bits,
    wanda_mask,
)
from tests.oracles import Oracle, largest_difference, randn
from tests.published.model_compression import bert_base, distilbert

SHARES = (0.0, 0.13, 0.5, 0.9)
T, ALPHA = 2.5, 0.7


def _layerwise() -> float:
    weight = randn(13, 11, seed=0)
    worst = 0.0
    for share in SHARES:
        layer = nn.Linear(11, 13, bias=False, dtype=torch.float64)
        layer.weight = nn.Parameter(weight.clone())
        prune.l1_unstructured(layer, "weight", amount=share)
        worst = max(worst, largest_difference(apply_mask(weight, magnitude_mask(weight, share)), layer.weight.detach()))
    return worst


def _global() -> float:
    weights = {"a": randn(5, 7, seed=1), "b": 3 * randn(4, 6, seed=2), "c": randn(9, seed=3)}
    worst = 0.0
    for share in SHARES:
        layers = {name: nn.Module() for name in weights}
        for name, layer in layers.items():
            layer.weight = nn.Parameter(weights[name].clone())
        pairs = [(layer, "weight") for layer in layers.values()]
        prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=share)
        masks = global_magnitude_masks(weights, share)
        for name, layer in layers.items():
            worst = max(worst, largest_difference(masks[name].double(), layer.weight_mask))
    return worst


def _random_count() -> float:
    """How many entries go, against torch's count."""
    worst = 0
    for share in (0.1, 0.25, 0.5, 0.77):
        layer = nn.Linear(11, 13, bias=False)
        with torch.random.fork_rng(devices=[]):
            prune.random_unstructured(layer, "weight", amount=share)
        ours = random_mask(layer.weight.detach(), share, torch.Generator().manual_seed(1))
        worst = max(worst, abs(int(ours.sum()) - int(layer.weight_mask.sum())))
    return float(worst)


def _wanda() -> float:
    """The reference code's own lines: a metric, sorted along each row, scattered into a mask of what goes."""
    weight, x = randn(6, 10, seed=4), randn(50, 10, seed=5) * torch.arange(1.0, 11.0)
    scaler_row = x.T.square().sum(dim=1)
    w_metric = weight.abs() * scaler_row.reshape(1, -1).sqrt()
    goes = torch.zeros_like(w_metric) == 1
    goes.scatter_(1, torch.sort(w_metric, dim=-1, stable=True)[1][:, : int(10 * 0.5)], True)
    return largest_difference(wanda_mask(weight, x, 0.5).double(), (~goes).double())


def _logits() -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(8))
    targets[0, 2] = -100
    return 3 * randn(2, 5, 7, seed=6), 3 * randn(2, 5, 7, seed=7), targets


def _soft() -> float:
    z, v, targets = _logits()
    counted = targets != -100
    log_q, p = F.log_softmax(z[counted] / T, dim=-1), F.softmax(v[counted] / T, dim=-1)
    theirs = T**2 * F.kl_div(log_q, p, reduction="batchmean")
    return largest_difference(distillation_loss(z, v, targets, T, ALPHA).soft, theirs)


def _soft_cross_entropy() -> float:
    """KL is the cross-entropy with soft targets less the teacher's own entropy."""
    z, v, targets = _logits()
    z, v, targets = z[1], v[1], targets[1]
    p = soften(v, T)
    theirs = F.cross_entropy(z / T, p) - torch.from_numpy(scipy.stats.entropy(p.numpy(), axis=1)).mean()
    return largest_difference(distillation_loss(z, v, targets, T, ALPHA).soft, T**2 * theirs)


def _total() -> float:
    z, v, targets = _logits()
    loss = distillation_loss(z, v, targets, T, ALPHA)
    hard = F.cross_entropy(z.flatten(0, 1), targets.flatten(), ignore_index=-100)
    return max(
        largest_difference(loss.hard, hard), largest_difference(loss.total, ALPHA * loss.soft + (1 - ALPHA) * hard)
    )


def _gradient() -> float:
    z, v, _ = _logits()
    leaf = z.clone().requires_grad_()
    kl = F.kl_div(F.log_softmax(leaf / T, dim=-1), F.softmax(v / T, dim=-1), reduction="sum")
    return largest_difference(distillation_grad(z, v, T), torch.autograd.grad(kl, leaf)[0])


def _gradient_of_the_loss() -> float:
    """T² / tokens times the gradient of one token's KL; nothing where the target is ignored."""
    z, v, targets = _logits()
    leaf = z.clone().requires_grad_()
    theirs = torch.autograd.grad(distillation_loss(leaf, v, targets, T, 1.0).total, leaf)[0]
    counted = (targets != -100)[..., None]
    return largest_difference(T**2 * distillation_grad(z, v, T) * counted / counted.sum(), theirs)


def _kmeans() -> float:
    values = randn(400, seed=9)
    start = np.linspace(values.min(), values.max(), 8)[:, None]
    theirs = KMeans(8, init=start, n_init=1, max_iter=500, tol=0, algorithm="lloyd").fit(values.numpy()[:, None])
    centroids, assignment = kmeans_1d(values, 8, iters=500)
    return max(
        largest_difference(centroids, torch.from_numpy(theirs.cluster_centers_[:, 0])),
        largest_difference(assignment, torch.from_numpy(theirs.labels_)),
    )


COUNTS = ([5, 1, 1, 2], [1] * 7, [1, 2, 4, 8, 16, 32], [40, 3, 0, 9, 9, 1], [7, 7])


def _heap_cost(counts: list[int]) -> int:
    """Bits of the whole text: the sum of all joined weights."""
    heap, total = [count for count in counts if count], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total


def _huffman() -> float:
    worst = 0.0
    for counts in COUNTS:
        tensor = torch.tensor(counts)
        worst = max(worst, abs(int((tensor * huffman_code_lengths(tensor)).sum()) - _heap_cost(counts)))
        worst = max(worst, abs(huffman_mean_length(tensor) - _heap_cost(counts) / sum(counts)))
    return worst


def _entropy() -> float:
    return max(abs(entropy_bits(torch.tensor(counts)) - scipy.stats.entropy(counts, base=2)) for counts in COUNTS)


def _csr() -> float:
    weight = apply_mask(randn(20, 30, seed=10).float(), magnitude_mask(randn(20, 30, seed=10), 0.8))
    matrix = scipy.sparse.csr_matrix(weight.numpy())
    theirs = 8 * sum(part.nbytes for part in (matrix.data, matrix.indices, matrix.indptr))
    return float(abs(sparse_bits(weight != 0, 32, "csr", index_bits=32) - theirs))


def _relative() -> float:
    """Write the padded entries one by one, as section 2 of 1510.00149 tells it, and read them back."""
    worst = 0
    for share, bits in ((0.5, 1), (0.9, 2), (0.9, 3), (0.97, 4)):
        mask = random_mask(torch.empty(300), share, torch.Generator().manual_seed(bits))
        entries, waiting = [], 0
        for kept in mask.tolist():
            waiting += 1
            if kept:
                entries.append((waiting, True))
                waiting = 0
            elif waiting == 2**bits - 1 and mask[sum(gap for gap, _ in entries) + waiting :].any():
                entries.append((waiting, False))
                waiting = 0
        read = torch.zeros(300, dtype=torch.bool)
        place = -1
        for gap, kept in entries:
            place += gap
            read[place] = kept
        assert torch.equal(read, mask)
        worst = max(worst, abs(sparse_bits(mask, 9, "relative", bits) - len(entries) * (9 + bits)))
    return float(worst)


def _encoder_weights() -> float:
    with torch.device("meta"):
        theirs = [BertModel(BertConfig()).num_parameters(), DistilBertModel(DistilBertConfig()).num_parameters()]
    return float(max(abs(a - b) for a, b in zip((bert_base(), distilbert()), theirs, strict=True)))


ROWS = (
    Oracle("layer-wise magnitude", _layerwise, 0, "torch.nn.utils.prune.l1_unstructured"),
    Oracle("global magnitude", _global, 0, "torch.nn.utils.prune.global_unstructured"),
    Oracle("how many go by lot", _random_count, 0, "torch.nn.utils.prune.random_unstructured"),
    Oracle("Wanda's mask", _wanda, 0, "lines of the Wanda repository"),
    Oracle("soft loss", _soft, 1e-12, "torch.nn.functional.kl_div"),
    Oracle("soft loss as a cross-entropy", _soft_cross_entropy, 1e-12, "torch cross_entropy, scipy.stats.entropy"),
    Oracle("hard and total loss", _total, 1e-12, "torch.nn.functional.cross_entropy"),
    Oracle("gradient of the KL", _gradient, 1e-12, "torch.autograd"),
    Oracle("gradient of the soft loss", _gradient_of_the_loss, 1e-12, "torch.autograd"),
    Oracle("k-means on a line", _kmeans, 1e-12, "sklearn.cluster.KMeans"),
    Oracle("bits of a Huffman text", _huffman, 1e-12, "heapq"),
    Oracle("entropy in bits", _entropy, 1e-12, "scipy.stats.entropy"),
    Oracle("bits of CSR", _csr, 0, "scipy.sparse.csr_matrix"),
    Oracle("weights of BERT and DistilBERT", _encoder_weights, 0, "transformers: BertModel, DistilBertModel"),
    Oracle("bits of relative indices", _relative, 0, "a naive encoder"),
)
