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
    logits_BG = query @ item.T / temperature
    if exclude is not None:
        exclude = exclude.scatter(1, target[:, None], False)
        logits_BG = logits_BG.masked_fill(exclude, -torch.inf)
    if negatives is not None:
        logits_BK = torch.einsum("bd,bkd->bk", query, negatives.to(dtype)) / temperature
        if negatives_mask is not None:
            logits_BK = logits_BK.masked_fill(~negatives_mask, -torch.inf)
        logits_BG = torch.cat([logits_BG, logits_BK], dim=1)
    return F.cross_entropy(logits_BG, target)
