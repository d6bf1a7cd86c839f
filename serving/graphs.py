"""The graphs of a bundle: names of their inputs, and `vote` cut in two; without torch.

    embed    strategic (B, Ws, Fs), tactical (B, Wt, Ft)                  -> embedded (B, 3, D)
    heads    embedded, regime (B, R), synergy (B, 3), account (B, 8), masks (B, K, 3, H) -> logits (B, K, 3, 3)
"""

from __future__ import annotations

import onnx
import onnx.utils

VOTE_INPUTS = ("strategic", "tactical", "regime", "synergy", "account", "masks")
EXECUTE_INPUTS = ("votes", "proposal", "regime", "synergy", "account", "allowed", "masks")
RISK_INPUTS = ("strategic", "tactical", "regime", "direction")
REGIME_INPUTS = ("window",)
EMBED_INPUTS = ("strategic", "tactical")
HEADS_INPUTS = ("embedded", "regime", "synergy", "account", "masks")


def split_vote(model: bytes) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """`vote.onnx`, given as its bytes, cut at the embeddings: (embed: EMBED_INPUTS -> embedded, heads:
    HEADS_INPUTS -> logits)."""
    extractor = onnx.utils.Extractor(onnx.load_from_string(model))
    return (extractor.extract_model(list(EMBED_INPUTS), ["embedded"]),
            extractor.extract_model(list(HEADS_INPUTS), ["logits"]))


def graph_model(model: bytes, graph: str) -> bytes:
    """The serialised graph `graph` of the bytes of the file that holds it: embed and heads are cut out of
    `vote.onnx`."""
    if graph not in ("embed", "heads"):
        return model
    embed, heads = split_vote(model)
    part: bytes = (embed if graph == "embed" else heads).SerializeToString(deterministic=True)
    return part
