"""Fusion: the embeddings of one sample, some of them absent, become one vector; or several answers become one.

in        embeddings [B, M, D] from encoders/ (zeros where absent) and present [B, M] from batch.py
out       fused [B, D], read by heads.py; at decision level, the answers of M heads become one answer
relies on nothing for rows without any modality: they give a finite result, because padded batches hold such rows

An absent modality has no weight, exactly, and gets no gradient, exactly. None uses statistics across the batch.
Importing this enters all of them in their registry.
"""

from shared.model.fusion import attention, decisions, language, layers, pair, products, sums

__all__ = ["attention", "decisions", "language", "layers", "pair", "products", "sums"]
