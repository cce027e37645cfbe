"""Seconds of one decoding step with and without a cache, beside its FLOPs: python -m benchmarks.kv_cache_steps

Random tokens, one thread, float32, the trained base model; medians of 5. Seconds depend on the machine, FLOPs do not.
Without a cache the model also computes logits that nobody reads; the FLOPs count one row of them.
"""

import statistics
import time
from collections.abc import Callable

import torch

from internals_math import tiny_lm
from internals_math.kv_cache import KVCache, generation_flops, tiny_shape

CONTEXTS = (16, 32, 64, 128, 256, 512)
REPEATS = 5


def median_seconds(step: Callable[[], object]) -> float:
    """Return the median over REPEATS runs after one to warm up."""
    step()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.no_grad()
def main() -> None:
    """Print one line for each context length."""
    model, shape = tiny_lm.load("base"), tiny_shape()
    generator = torch.Generator().manual_seed(0)
    print("context  cached ms uncached ms  ratio  FLOPs cached    uncached  ratio")
    with tiny_lm.one_thread():
        for context in CONTEXTS:
            ids = torch.randint(0, tiny_lm.VOCAB_SIZE, (1, context), generator=generator)
            cache = KVCache(shape.num_hidden_layers)
            model(ids[:, :-1], cache=cache)

            def cached(ids=ids, cache=cache) -> None:
                model(ids[:, -1:], cache=cache)
                cache.crop(ids.shape[1] - 1)

            with_cache, without = median_seconds(cached), median_seconds(lambda ids=ids: model(ids))
            flops = [int(generation_flops(shape, context - 1, 2, use_cache=use)[1]) for use in (True, False)]
            print(
                f"{context:7d} {1e3 * with_cache:10.3f} {1e3 * without:11.3f} {without / with_cache:6.1f} "
                f"{flops[0]:13,d} {flops[1]:11,d} {flops[1] / flops[0]:6.1f}"
            )


if __name__ == "__main__":
    main()
