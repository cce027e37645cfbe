"""What tests of preference learning ask of a policy, written out: its answers, KL and expected reward."""

import torch

from internals_math import tiny_lm


def places_of(answers):
    """Where answers of two words stand among all."""
    return torch.tensor(
        [ids[0] * tiny_lm.VOCAB_SIZE + ids[1] for ids in (tiny_lm.encode(a, bos=False) for a in answers)]
    )


def divergence(policy, reference):
    """KL(policy ‖ reference), averaged over the prompts."""
    return float(torch.nn.functional.kl_div(reference.log(), policy, reduction="none").sum(dim=1).mean())


def worth(policy, rewards):
    """The expected reward, averaged over the prompts."""
    return float((policy * rewards).sum(dim=1).mean())
