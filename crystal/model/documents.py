"""Attention confined to documents, of which a packed row holds several (attention=document).

The surprise: positions are not counted anew in each document. Rotary embedding makes attention depend on distances only, so a document
in the middle of a row gets the logits that it gets alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def seen_within(documents_BT: Tensor | None) -> Tensor | None:
    """seen_B1TS, true where query t sees key s: s <= t, and both of the same document. None, every key up to the query's own, for None.

    documents_BT: integers, equal within a document. The mask takes B x T x T bytes, is made once a forward pass and read by every layer;
    with it attention computes the whole square, where without one it leaves out the half above the diagonal.
    """
    if documents_BT is None:
        return None
    place_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)  # a batched tril would not lower for a Cerebras system
    same_BTS = documents_BT[:, :, None] == documents_BT[:, None, :]
    return (same_BTS & (place_T[:, None] >= place_T)).unsqueeze(1)
