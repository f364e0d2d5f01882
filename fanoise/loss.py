"""Contrastive losses: embeddings in, scalar out. Everything here is noise-free and knows no processes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fanoise.errors import ConfigError


def info_nce(
    query: Tensor,
    item: Tensor,
    *,
    temperature: float = 0.02,
    target: Tensor | None = None,
    negatives: Tensor | None = None,
    negatives_mask: Tensor | None = None,
    exclude: Tensor | None = None,
    hardness: float = 0.0,
    false_negative_margin: float | None = None,
) -> Tensor:
    """Mean cross-entropy of each query against every item of the global batch, and its own mined negatives.

    Source: van den Oord et al. 2018, arXiv 1807.03748, Eq. 4, with cosine similarity / temperature as log f; Eq. 1 of
    arXiv 2511.20997. sentence-transformers' `scale` is 1 / temperature.
    Args:
        query: [B, D], L2-normalised rows.
        item: [G, D], L2-normalised rows, already gathered across processes.
        temperature: > 0, divides the similarities (0.02 means logits in [-50, 50]).
        target: [B], for each query the row of `item` that is its positive; by default 0 .. B-1.
        negatives: [B, K, D], each query's mined negatives, seen by that query only.
        negatives_mask: [B, K] bool, True where a mined negative exists.
        exclude: [B, G] bool, True where an item is another right answer and must not count as a negative. The
            positive itself always counts.
        hardness: >= 0, each negative's term in the denominator is weighted by exp(hardness * similarity), the weight
            without gradient (LLaVE, arXiv 2503.04812, with 9); 0 weights all alike.
        false_negative_margin: a negative more similar to the query than the positive is, by more than this, is taken
            for another right answer and left out (UniME, arXiv 2504.17432, with 0.1); none keeps all.
    Returns: a scalar, at least float32 whatever the inputs are.
    Raises: ConfigError if temperature <= 0 or shapes do not fit.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be > 0, got {temperature}")
    if query.ndim != 2 or item.ndim != 2 or query.shape[1] != item.shape[1]:
        raise ConfigError(
            f"query [B, D] and item [G, D] must share D, got {tuple(query.shape)} and {tuple(item.shape)}"
        )
    if target is None:
        if item.shape[0] < query.shape[0]:
            raise ConfigError(f"{query.shape[0]} queries need as many items, got {item.shape[0]}; or pass `target`")
        target = torch.arange(query.shape[0], device=query.device)
    dtype = torch.promote_types(torch.promote_types(query.dtype, item.dtype), torch.float32)
    query, item = query.to(dtype), item.to(dtype)
    similarity_BC = query @ item.T  # C candidates: all items, then the query's own mined negatives
    left_out = torch.zeros_like(similarity_BC, dtype=torch.bool) if exclude is None else exclude
    if negatives is not None:
        similarity_BC = torch.cat([similarity_BC, torch.einsum("bd,bkd->bk", query, negatives.to(dtype))], dim=1)
        exists = torch.ones(negatives.shape[:2], dtype=torch.bool, device=query.device)
        left_out = torch.cat([left_out, ~(exists if negatives_mask is None else negatives_mask)], dim=1)
    positive_B1 = similarity_BC.detach().gather(1, target[:, None])
    if false_negative_margin is not None:
        left_out = left_out | (similarity_BC.detach() > positive_B1 + false_negative_margin)
    logits_BC = similarity_BC / temperature
    if hardness:
        weight_BC = hardness * similarity_BC.detach()
        logits_BC = logits_BC + weight_BC.scatter(1, target[:, None], 0.0)  # the positive's own term is not weighted
    left_out = left_out.scatter(1, target[:, None], False)
    return F.cross_entropy(logits_BC.masked_fill(left_out, -torch.inf), target)
