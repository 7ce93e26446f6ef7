"""What a version's manifest knows about its cuts, put into the profile of its whole model before a plan is made.

A profile holds times and sizes of a model's plain cuts; a manifest holds what a recipe measured on samples kept apart:
how much of the picture leaks, and what the version's own bottleneck or rounded cut costs on the wire. Leakage is carried
over by the data processing inequality: whoever has a tensor can compute everything that follows from it alone.

* What an attack saw at one cut it can also see from any cut before it, and from the plain tensors of a cut that crosses
  rounded: the best known reconstruction there is at least as good.
* What an attack saw of rounded tensors it can also see of those of a cut before it, rounded too: in a chain the later
  ones come from the earlier.
* A cut where nothing was measured shows at most what a plain cut before it shows. A rounded or encoded cut where nothing
  was measured shows at most what its plain tensors show.
* What was measured of rounded or encoded tensors says nothing about the plain ones of the cuts that follow.

The bounds hold for the best attack there is; the figures are of one of a fixed budget. Pure; knows no registry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from splitmesh.model.manifest import CutLeakage, Manifest, SplitInfo
from splitmesh.model.plan_graph import before
from splitmesh.model.profile_data import (
    BOTTLENECK_CODEC,
    FLOAT_CODEC,
    QUANTISED_CODEC,
    RANGE_CODEC,
    CutProfile,
    NodeProfile,
    Profile,
)

_PLAIN = "float32"

_CODECS = {"int8": (QUANTISED_CODEC, RANGE_CODEC), "bottleneck": (BOTTLENECK_CODEC,)}
"""Codecs of a profile by what crosses in a measurement; packing loses nothing, so each that carries it."""


def with_manifest_facts(profile: Profile, manifest: Manifest, timed_ms: Mapping[str, float] | None = None) -> Profile:
    """The profile with the leakage of every cut as far as it is known, and the version's own coded cut as a codec.

    Args:
        profile: of the version's whole model.
        manifest: of the version.
        timed_ms: ``Report.latency_ms`` of the version's recipe: from it comes what an encoder and a decoder add to head
            and tail, and how the node that made the version compares with the profile's. None: the entropy coding alone
            is counted, as it was timed there.
    """
    cuts = profile.cuts
    if manifest.split is not None:
        cuts = tuple(_with_own_codec(cut, profile, manifest.split, timed_ms or {}) for cut in cuts)
    if manifest.leakage:
        cuts = tuple(_with_leakage(cut, profile.nodes, manifest.leakage) for cut in cuts)
    return profile if cuts == profile.cuts else profile.model_copy(update={"cuts": cuts})


def crossing_codec(split: SplitInfo) -> str:
    """What a profile calls that which crosses the (first) cut of a split version."""
    if split.bottleneck is not None:
        return BOTTLENECK_CODEC
    if split.coding is not None:
        return RANGE_CODEC
    return QUANTISED_CODEC if split.quantisation else FLOAT_CODEC


def _with_own_codec(cut: CutProfile, profile: Profile, split: SplitInfo, timed_ms: Mapping[str, float]) -> CutProfile:
    """The cut at which the version is split, with what crosses there at the best rate."""
    # Of a chain a plan over two hosts can use neither cut alone.
    if split.middle or split.coding is None or {info.name for info in split.cut} != set(cut.tensors):
        return cut
    codec, coding = crossing_codec(split), split.coding
    rate = coding.rates[0]
    whole_ms = timed_ms.get("whole", 0.0)
    pace = profile.whole_ms / whole_ms if whole_ms > 0 else 1.0
    encoder_ms, decoder_ms = (
        max(0.0, pace * timed_ms[piece] - plain_ms) if whole_ms > 0 and piece in timed_ms else 0.0
        for piece, plain_ms in (("head", cut.head_ms), ("tail", cut.tail_ms))
    )
    agreement = {} if rate.agreement is None else {codec: rate.agreement}
    return cut.model_copy(
        update={
            "wire_bytes": {**cut.wire_bytes, codec: max(1, round(rate.wire_bytes))},
            "encode_ms": {**cut.encode_ms, codec: encoder_ms + pace * coding.encode_ms},
            "decode_ms": {**cut.decode_ms, codec: decoder_ms + pace * coding.decode_ms},
            "agreement": {**cut.agreement, **agreement},
        }
    )


def _with_leakage(cut: CutProfile, nodes: tuple[NodeProfile, ...], known: Iterable[CutLeakage]) -> CutProfile:
    known = tuple(known)
    plain = _plain_leakage(cut.tensors, nodes, known)
    own = dict(cut.codec_leakage)
    for entry in known:
        if entry.codec != _PLAIN and set(entry.cut) == set(cut.tensors):
            # In a chain what crosses at a later cut was computed from what crosses here, rounded in both places.
            seen = [
                other.ssim for other in known if other.codec == entry.codec and _follows(other.cut, cut.tensors, nodes)
            ]
            own |= dict.fromkeys(_CODECS[entry.codec], max(seen))
    values = {"leakage": cut.leakage if plain is None else plain, "codec_leakage": own}
    return cut.model_copy(update=values)


def _plain_leakage(
    tensors: tuple[str, ...], nodes: tuple[NodeProfile, ...], known: tuple[CutLeakage, ...]
) -> float | None:
    """Best known reconstruction from these tensors as they are, or the most there can be; None: nothing is known."""
    if any(set(entry.cut) == set(tensors) and entry.codec == _PLAIN for entry in known):
        return _best_known(tensors, nodes, known)
    bounds = [
        _best_known(entry.cut, nodes, known)
        for entry in known
        if entry.codec == _PLAIN and _follows(tensors, entry.cut, nodes)
    ]
    return min(bounds, default=None)


def _best_known(tensors: tuple[str, ...], nodes: tuple[NodeProfile, ...], known: tuple[CutLeakage, ...]) -> float:
    """Highest figure among the cuts, in whatever form, that can be computed from these tensors."""
    return max(entry.ssim for entry in known if _follows(entry.cut, tensors, nodes))


def _follows(later: tuple[str, ...], cut: tuple[str, ...], nodes: tuple[NodeProfile, ...]) -> bool:
    """Whether the tensors of a cut alone decide some others: each is one of them or computed behind them."""
    if set(later) <= set(cut):
        return True
    head, names = before(nodes, cut), {node.name: index for index, node in enumerate(nodes)}
    if head is None:
        return False
    return all(name in cut or (name in names and names[name] not in head) for name in later)
