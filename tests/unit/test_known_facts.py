"""A manifest's facts in a profile: the version's own coded cut, and what is known of the leakage of every cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from services.partitioner.work import split_version
from splitmesh.cli.plan_profile import manifest_beside
from splitmesh.model.known_facts import crossing_codec, with_manifest_facts
from splitmesh.model.manifest import MANIFEST, CutLeakage, Manifest
from splitmesh.model.plan import Constraints, Kind, Link, Plan, Workload, make_plan
from splitmesh.model.profile_data import BOTTLENECK_CODEC, FLOAT_CODEC, QUANTISED_CODEC, CutProfile, Profile
from tests.integration.small_model import CUT, small_manifest, small_model
from tests.unit.leakage_versions import cut_at, encoded, rounded
from tests.unit.plan_profiles import Op, surveyed

CHAIN = [Op((-1,), 2, 2, 9_000), Op((0,), 3, 3, 4_000), Op((1,), 4, 4, 3_500), Op((2,), 5, 5, 1)]
BRANCHES = [Op((-1,), 2, 2, 900), Op((0,), 1, 1, 500), Op((0,), 1, 1, 400), Op((1, 2), 3, 3, 100), Op((3,), 5, 5, 1)]
FREE = Constraints()


def leak(ssim: float, *cut: str, codec: str = "float32") -> CutLeakage:
    return CutLeakage.model_validate(
        {
            "cut": cut,
            "codec": codec,
            "ssim": ssim,
            "psnr_db": 20.0,
            "baseline_ssim": 0.1,
            "samples": 30,
            "fit_samples": 70,
            "steps": 100,
        }
    )


def leaking(*known: CutLeakage, manifest: Manifest | None = None) -> Manifest:
    return (manifest or small_manifest()).model_copy(update={"leakage": known})


def cut_of(profile: Profile, *tensors: str) -> CutProfile:
    return next(cut for cut in profile.cuts if set(cut.tensors) == set(tensors))


def small_profile() -> Profile:
    """Of the small model's shape, with round numbers."""
    profile = surveyed([Op((-1,), 4, 4, 8_192), Op((0,), 1, 1, 8_192), Op((1,), 5, 5, 1)])
    names = {"t0": "c1", "t1": CUT, "t2": "logits"}
    return profile.model_copy(
        update={
            "cuts": tuple(
                cut.model_copy(update={"tensors": tuple(names[name] for name in cut.tensors)}) for cut in profile.cuts
            ),
            "nodes": tuple(node.model_copy(update={"name": names[node.name]}) for node in profile.nodes),
        }
    )


def test_a_manifest_without_facts_changes_nothing() -> None:
    profile = surveyed(CHAIN)
    assert with_manifest_facts(profile, small_manifest()) is profile
    assert with_manifest_facts(small_profile(), cut_at(CUT).manifest) == small_profile()
    # rounded, but packed as the profile has it anyway
    assert with_manifest_facts(small_profile(), rounded(CUT).manifest) == small_profile()


def test_a_measured_cut_bounds_those_behind_it_and_says_nothing_of_those_before() -> None:
    found = with_manifest_facts(surveyed(CHAIN), leaking(leak(0.6, "t1")))
    assert [cut.leakage for cut in found.cuts] == [None, 0.6, 0.6]


def test_what_was_seen_behind_a_cut_can_be_seen_from_it() -> None:
    # an attack that did worse at an earlier cut is no proof that less can be seen there
    found = with_manifest_facts(surveyed(CHAIN), leaking(leak(0.5, "t0"), leak(0.7, "t2")))
    assert [cut.leakage for cut in found.cuts] == [0.7, 0.7, 0.7]
    found = with_manifest_facts(surveyed(CHAIN), leaking(leak(0.9, "t0"), leak(0.4, "t1")))
    assert [cut.leakage for cut in found.cuts] == [0.9, 0.4, 0.4]


def test_a_branch_alone_bounds_nothing_and_a_cut_through_all_bounds_what_joins_them() -> None:
    profile = surveyed(BRANCHES)
    found = with_manifest_facts(profile, leaking(leak(0.8, "t1", "t2")))
    assert cut_of(found, "t1", "t2").leakage == 0.8
    assert cut_of(found, "t3").leakage == 0.8
    assert cut_of(found, "t0").leakage is None
    assert cut_of(found, "t0", "t2").leakage is None
    found = with_manifest_facts(profile, leaking(leak(0.8, "t0"), leak(0.3, "t3")))
    assert cut_of(found, "t2", "t1").leakage == 0.8


def test_without_the_graph_a_figure_is_of_its_own_cut_alone() -> None:
    profile = surveyed(CHAIN).model_copy(update={"nodes": ()})
    found = with_manifest_facts(profile, leaking(leak(0.6, "t1")))
    assert [cut.leakage for cut in found.cuts] == [None, 0.6, None]


def test_rounding_hides_its_own_cut_alone_and_shows_what_the_plain_one_must_show() -> None:
    found = with_manifest_facts(surveyed(CHAIN), leaking(leak(0.6, "t1", codec="int8")))
    assert [cut.leakage for cut in found.cuts] == [None, None, None]
    cut = cut_of(found, "t1")
    assert (cut.leaks(QUANTISED_CODEC), cut.leaks(FLOAT_CODEC)) == (0.6, None)
    found = with_manifest_facts(surveyed(CHAIN), leaking(leak(0.5, "t1"), leak(0.6, "t1", codec="int8")))
    assert (cut_of(found, "t1").leaks(FLOAT_CODEC), cut_of(found, "t2").leaks(FLOAT_CODEC)) == (0.6, 0.6)
    found = with_manifest_facts(surveyed(CHAIN), leaking(leak(0.9, "t1"), leak(0.6, "t1", codec="bottleneck")))
    cut = cut_of(found, "t1")
    assert (cut.leaks(BOTTLENECK_CODEC), cut.leaks(QUANTISED_CODEC), cut.leaks(FLOAT_CODEC)) == (0.6, 0.9, 0.9)


def test_what_leaks_at_a_chains_later_rounded_cut_leaks_at_the_earlier_one_too() -> None:
    found = with_manifest_facts(
        surveyed(CHAIN),
        leaking(leak(0.2, "t0", codec="int8"), leak(0.5, "t1", codec="int8"), leak(0.3, "t2", codec="int8")),
    )
    assert [cut.leaks(QUANTISED_CODEC) for cut in found.cuts] == [0.5, 0.5, 0.3]


def test_a_version_that_is_cut_keeps_what_is_known_of_its_plain_cuts() -> None:
    plain, coded = leak(0.7, CUT), leak(0.4, CUT, codec="int8")
    made = split_version(small_model(), leaking(plain, coded).to_json().encode(), None, [[CUT]])
    assert Manifest.from_json(made[MANIFEST]).leakage == (plain,)


def test_a_bottleneck_is_offered_with_the_figures_of_its_best_rate() -> None:
    manifest = encoded(2).manifest
    assert manifest.split is not None
    assert crossing_codec(manifest.split) == BOTTLENECK_CODEC
    found = with_manifest_facts(small_profile(), manifest)
    cut, before = cut_of(found, CUT), cut_of(small_profile(), CUT)
    assert cut.wire_bytes == {**before.wire_bytes, BOTTLENECK_CODEC: 40}
    assert cut.agreement == {BOTTLENECK_CODEC: 0.97}
    assert (cut.encode_ms[BOTTLENECK_CODEC], cut.decode_ms[BOTTLENECK_CODEC]) == (0.25, 0.125)
    assert cut_of(found, "c1") == cut_of(small_profile(), "c1")


def test_what_encoder_and_decoder_add_is_counted_at_the_pace_of_the_profiled_host() -> None:
    # the node that made the version is twice as fast: 5 ms for the whole, head 2.5 -> 3, tail 2.5 -> 2.75 with the coders
    timed = {"whole": 5.0, "head": 3.0, "tail": 2.75, "encode": 9.0}
    cut = cut_of(with_manifest_facts(small_profile(), encoded(2).manifest, timed), CUT)
    assert cut.encode_ms[BOTTLENECK_CODEC] == pytest.approx(2 * 3.0 - 5 + 2 * 0.25)
    assert cut.decode_ms[BOTTLENECK_CODEC] == pytest.approx(2 * 2.75 - 5 + 2 * 0.125)


def test_a_plan_weighs_the_bottleneck_against_everything_else() -> None:
    profile = with_manifest_facts(small_profile(), encoded(2).manifest)

    def plan(mbps: float, *, picture: int = 500, slowdown: float = 10, limits: Constraints = FREE) -> Plan:
        load = Workload({"as sent": picture})
        return make_plan(profile, Link(mbps, 1), load, limits, edge_slowdown=slowdown, cloud_speedup=10)

    stays = Constraints(picture_stays_on_site=True)
    best = plan(1, limits=stays).best
    assert (best.kind, best.cut, best.codec, best.uplink_bytes, best.agreement) == (
        Kind.SPLIT,
        (CUT,),
        BOTTLENECK_CODEC,
        40,
        0.97,
    )
    assert plan(1, slowdown=1, limits=stays).best.kind is Kind.EDGE_ONLY
    assert plan(1).best.kind is Kind.CLOUD_ONLY
    assert plan(0.01, picture=5000).best.codec == BOTTLENECK_CODEC
    assert plan(1, limits=replace(stays, allow_quantised=False)).best.codec != BOTTLENECK_CODEC
    certificate = plan(1, limits=stays).certificate
    assert certificate is not None
    assert certificate.lower_bound_ms <= best.latency_ms


def test_a_ceiling_refuses_what_was_seen_too_well_and_what_nobody_looked_at() -> None:
    seen = leaking(leak(0.35, CUT, codec="bottleneck"), leak(0.8, "c1"), manifest=encoded(2).manifest)
    profile = with_manifest_facts(small_profile(), seen)

    def at_most(ceiling: float) -> dict[tuple[tuple[str, ...], str], str | None]:
        limits = Constraints(max_leakage=ceiling)
        made = make_plan(profile, Link(1, 1), Workload(), limits, edge_slowdown=10, cloud_speedup=10)
        return {(option.cut, option.codec): option.refused_because for option in made.options if option.cut}

    strict, loose = at_most(0.3), at_most(0.5)
    assert "0.35 of the picture can be told from it" in (strict[(CUT,), BOTTLENECK_CODEC] or "")
    assert loose[(CUT,), BOTTLENECK_CODEC] is None
    assert "0.8 of the picture can be told from it" in (loose[(CUT,), FLOAT_CODEC] or "")
    assert at_most(0.8)[(CUT,), FLOAT_CODEC] is None
    unknown = with_manifest_facts(small_profile(), encoded(2).manifest)
    made = make_plan(unknown, Link(1, 1), Workload(), Constraints(max_leakage=0.9))
    assert made.best.kind is Kind.EDGE_ONLY
    assert all("is not known" in (option.refused_because or "") for option in made.options if option.cut)


def test_an_edge_that_cannot_convolve_has_no_encoder() -> None:
    profile = with_manifest_facts(small_profile(), encoded(2).manifest)
    nodes = tuple(node.model_copy(update={"operator": "Relu"}) for node in profile.nodes)
    profile = profile.model_copy(update={"nodes": nodes})
    limits = Constraints(unsupported_on_edge=frozenset({"Conv"}))
    options = make_plan(profile, Link(1, 1), Workload(), limits).options
    refused = {option.codec: option.refused_because for option in options if option.cut == (CUT,)}
    assert refused == {FLOAT_CODEC: None, BOTTLENECK_CODEC: "the edge cannot run Conv"}


def test_a_file_takes_the_manifest_beside_it_only_when_it_is_its_own(tmp_path: Path) -> None:
    path, beside = tmp_path / "model.onnx", tmp_path / "manifest.json"
    path.write_bytes(small_model())
    model = onnx.load_from_string(small_model())
    assert manifest_beside(path, model) is None
    manifest = leaking(leak(0.5, CUT))
    beside.write_text(manifest.to_json())
    assert manifest_beside(path, model) == manifest
    other = onnx.load_from_string(small_model())
    other.graph.output[0].name = "scores"
    assert manifest_beside(path, other) is None
    assert manifest_beside(tmp_path / "another.onnx", model) is None
    beside.write_text('{"name": "my web page", "icons": []}')
    assert manifest_beside(path, model) is None
