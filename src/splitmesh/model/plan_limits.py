"""What forbids an option: every constraint it breaks, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from splitmesh.errors import field_error
from splitmesh.model.plan_options import Constraints, Kind
from splitmesh.model.profile_data import BOTTLENECK_CODEC, LOSSY_CODECS, Profile

ROUNDING_OPERATORS = frozenset({"QuantizeLinear"})
"""What rounding a cut of float32 to 8 bits adds to a head."""

ENCODER_OPERATORS = frozenset(
    {"Add", "Conv", "Flatten", "Gemm", "MatMul", "Mul", "Relu", "Reshape", "Sub", "Transpose"}
)
"""What a bottleneck's encoder may add to a head."""

EXIT_OPERATORS = frozenset(
    {"Add", "Concat", "Flatten", "Gemm", "Mul", "ReduceMax", "ReduceMean", "Reshape", "Softmax", "Sqrt", "Sub"}
)
"""What an exit may add to a head."""


def picture_refusals(limits: Constraints) -> Iterator[str]:
    """Why the picture may not cross."""
    if limits.picture_stays_on_site:
        yield "the picture may not leave the site"
    if limits.max_leakage is not None and limits.max_leakage < 1:
        yield f"the picture itself would cross, features may leak at most {limits.max_leakage:g} of it"


def cut_refusals(limits: Constraints, tensors: Sequence[str], codec: str, leakage: float | None) -> Iterator[str]:
    """Why these tensors may not cross in this codec."""
    if codec in LOSSY_CODECS and not limits.allow_quantised:
        yield "quantised cuts are not allowed"
    if kept := [name for name in tensors if name in limits.kept_on_edge]:
        yield f"{', '.join(kept)} may not leave the edge"
    if limits.max_leakage is None:
        return
    if leakage is None:
        yield f"how much of the picture it leaks is not known, at most {limits.max_leakage:g} may"
    elif leakage > limits.max_leakage:
        yield f"{leakage:.3g} of the picture can be told from it (SSIM), at most {limits.max_leakage:g} may"


def memory_refusals(tier: str, model_bytes: int, most: int | None) -> Iterator[str]:
    """Why a tier cannot hold its part."""
    if most is not None and model_bytes > most:
        yield f"the {tier} would hold {model_bytes} bytes of model, at most {most} fit"


def rate_refusals(limits: Constraints, uplink_bytes: float, throughput_fps: float) -> Iterator[str]:
    """Why the line delivers more than it carries."""
    if limits.frames_per_s is None:
        return
    if throughput_fps < limits.frames_per_s:
        yield f"it carries {throughput_fps:.1f} frames/s, the line delivers {limits.frames_per_s:g}"
    used = uplink_bytes * limits.frames_per_s
    if limits.uplink_budget_bytes_per_s is not None and used > limits.uplink_budget_bytes_per_s:
        yield f"it uses {used:.0f} bytes/s of the uplink, the budget is {limits.uplink_budget_bytes_per_s:g}"


def operator_refusals(
    limits: Constraints, operators: Collection[str] | None, kind: Kind = Kind.SPLIT, codec: str = ""
) -> Iterator[str]:
    """Why the first tier cannot run its part: ``operators`` by type (None: not known which), and what an exit of a cascade
    and rounding add to them.
    """
    if not limits.unsupported_on_edge:
        return
    if operators is None:
        yield "which operators the edge would have to run is not known"
        return
    held = set(operators)
    if kind is Kind.CASCADE:
        held |= EXIT_OPERATORS
    if codec in LOSSY_CODECS:
        held |= ROUNDING_OPERATORS
    if codec == BOTTLENECK_CODEC:
        held |= ENCODER_OPERATORS
    if lacking := sorted(held & limits.unsupported_on_edge):
        yield f"the edge cannot run {', '.join(lacking)}"


def require_operators(profile: Profile, limits: Constraints) -> None:
    """MeshError FIELD_INVALID when operators are limited but the profile does not say which there are."""
    if limits.unsupported_on_edge and not (profile.nodes and all(node.operator for node in profile.nodes)):
        raise field_error(
            "unsupported_on_edge", "needs a profile that lists the model's operators; measure the version again"
        )
