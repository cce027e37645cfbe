"""What a pruned tensor costs to store: few shared values, short codes for common ones, and the positions of the rest.

Notation: n = weights, k = clusters, b = bits of a stored value, d = bits of an index.
Sources: Han, Mao, Dally 2015 (Deep Compression, 1510.00149) sections 2 to 4 and eq. 1; Huffman 1952.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from internals_math.distributions import entropy

FORMATS = ("dense", "bitmask", "csr", "relative")


def kmeans_1d(
    values: Float[Tensor, " n"], k: int, iters: int, init: str = "linear"
) -> tuple[Float[Tensor, " k"], Int[Tensor, " n"]]:
    """Share k values among n weights: Lloyd's algorithm on a line (section 3.1).

    A cluster that lost all its members moves to the value that is farthest from its own centroid.

    Args:
        iters: rounds of assigning and averaging; 0 = the start.
        init: "linear" spaces the centroids evenly from the smallest to the largest value, which keeps the rare large
            weights; "density" puts them at even quantiles, where the values are (section 3.2).

    Returns:
        the centroids in rising order, and the index of the nearest one for each value (the lower of two equally near).

    Raises:
        ValueError: k out of 1..n, iters below 0, unknown init.
    """
    if not 1 <= k <= len(values):
        raise ValueError(f"k must be in 1..{len(values)} (the number of values), got {k}")
    if iters < 0:
        raise ValueError(f"iters must be at least 0, got {iters}")
    share = torch.linspace(0, 1, k, dtype=values.dtype, device=values.device)
    if init == "linear":
        centroids = values.min() + (values.max() - values.min()) * share
    elif init == "density":
        centroids = torch.quantile(values, share)
    else:
        raise ValueError(f"init must be linear or density, got {init!r}")
    for _ in range(iters):
        assignment = _nearest(values, centroids)
        counts = torch.bincount(assignment, minlength=k)
        sums = torch.zeros_like(centroids).index_add_(0, assignment, values)
        distance = (values - centroids[assignment]).abs()
        empty = (counts == 0).nonzero()[:, 0]
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
        centroids[empty] = values[distance.argsort(descending=True, stable=True)[: len(empty)]]
        centroids = centroids.sort().values
    return centroids, _nearest(values, centroids)


def _nearest(values: Float[Tensor, " n"], centroids: Float[Tensor, " k"]) -> Int[Tensor, " n"]:
    return torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)


def weight_sharing_rate(n: int, b: int, k: int) -> float:
    """Return n b / (n log2 k + k b), how many times smaller n weights are as indices and a table (eq. 1).

    Raises:
        ValueError: n or b below 1, k out of 1..n.

    >>> weight_sharing_rate(16, b=32, k=4)
    3.2
    """
    if n < 1 or b < 1 or not 1 <= k <= n:
        raise ValueError(f"n and b must be at least 1 and k in 1..n, got n {n}, b {b}, k {k}")
    return n * b / (n * math.log2(k) + k * b)


def huffman_code_lengths(counts: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
    """Return the bits of each symbol's word in an optimal prefix code (section 4).

    A symbol that never occurs has no word: 0. So has a lone one, of which nothing needs to be said.

    Raises:
        ValueError: negative counts, or none above 0.
    """
    _check_counts(counts)
    numbers = counts.tolist()
    used = sorted((symbol for symbol, count in enumerate(numbers) if count > 0), key=lambda symbol: numbers[symbol])
    # Two queues that stay sorted by themselves: leaves by their count, joined nodes by the order of their making.
    leaves = [(numbers[symbol], [symbol]) for symbol in used]
    joined: list[tuple[int, list[int]]] = []
    lengths = torch.zeros(len(numbers), dtype=torch.long)

    def rarest() -> tuple[int, list[int]]:
        takes_leaf = bool(leaves) and (not joined or leaves[0][0] <= joined[0][0])
        return (leaves if takes_leaf else joined).pop(0)

    while len(leaves) + len(joined) > 1:
        (first, under_first), (second, under_second) = rarest(), rarest()
        members = under_first + under_second
        lengths[members] += 1
        joined.append((first + second, members))
    return lengths.to(counts.device)


def huffman_mean_length(counts: Int[Tensor, " k"]) -> float:
    """Return the bits per symbol of that code, at least `entropy_bits` and less than one bit above it."""
    return int((counts * huffman_code_lengths(counts)).sum()) / int(counts.sum())


def entropy_bits(counts: Int[Tensor, " k"]) -> float:
    """Return the Shannon entropy of the shares of these counts, in bits.

    Raises:
        ValueError: negative counts, or none above 0.
    """
    _check_counts(counts)
    return float(entropy(counts.double() / counts.sum())) / math.log(2)


def sparse_bits(mask: Bool[Tensor, "..."], value_bits: int, format: str, index_bits: int = 4) -> int:
    """Return the bits that a tensor takes of which only the entries under a mask (True = kept) are not 0.

    Args:
        value_bits: of one kept entry; 0 counts the positions alone.
        format: "dense" stores every entry; "bitmask" one bit per entry and the kept values; "csr" a column index per
            kept value and a pointer per row and one more, all of index_bits; "relative" the distance of each kept
            entry from the one before it in flat order (from position -1 at the start), where a distance above
            2^index_bits - 1 takes a padding zero, stored like a kept value (section 2).

    Raises:
        ValueError: unknown format, value_bits below 0, index_bits below 1 or too few for csr's columns and pointers.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if value_bits < 0 or index_bits < 1:
        raise ValueError(f"value_bits must be at least 0 and index_bits at least 1, got {value_bits} and {index_bits}")
    kept = int(mask.sum())
    if format == "dense":
        return mask.numel() * value_bits
    if format == "bitmask":
        return mask.numel() + kept * value_bits
    if format == "csr":
        if mask.ndim != 2:
            raise ValueError(f"csr needs rows and columns, got a mask of shape {tuple(mask.shape)}")
        rows, columns = mask.shape
        if max(kept, columns - 1) >= 2**index_bits:
            raise ValueError(
                f"index_bits must hold column {columns - 1} and pointer {kept}, got {index_bits} bits (up to "
                f"{2**index_bits - 1})"
            )
        return kept * (value_bits + index_bits) + (rows + 1) * index_bits
    positions = mask.flatten().nonzero()[:, 0]
    gaps = positions.diff(prepend=positions.new_tensor([-1]))
    padding = int(((gaps - 1) // (2**index_bits - 1)).sum())
    return (kept + padding) * (value_bits + index_bits)


def _check_counts(counts: Tensor) -> None:
    if (counts < 0).any() or not (counts > 0).any():
        raise ValueError(f"counts must be at least 0 and one above 0, got {counts.tolist()}")
