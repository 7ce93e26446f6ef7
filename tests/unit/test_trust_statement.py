"""Each way to pass off a version as signed that was not, and what a retired and a revoked key still vouch for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.trust.envelope import Envelope, EnvelopeSignature, sign
from splitmesh.trust.keyring import Keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.statement import (
    PAYLOAD_TYPE,
    Statement,
    Subject,
    Verified,
    dataset_subject,
    sign_statement,
    verify_statement,
)
from splitmesh.trust.trusted_key import Kind, TrustedKey
from tests.support.signing import HEAD, MINUTE, MODEL, NOON, PARTS, TAIL, ring_of, signed, statement

ROOT, KEY, OTHER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
RING = ring_of(ROOT, TrustedKey(KEY.public, "press"), TrustedKey(OTHER.public, "lab"))


def verify(
    envelope: bytes,
    ring: Keyring = RING,
    *,
    kind: Kind = "model-version",
    name: str = MODEL,
    subjects: tuple[Subject, ...] = PARTS,
    **more: object,
) -> Verified:
    return verify_statement(envelope, ring, kind=kind, name=name, subjects=subjects, **more)  # type: ignore[arg-type]


def refused(envelope: bytes, ring: Keyring = RING, **wanted: object) -> MeshError:
    with pytest.raises(MeshError) as caught:
        verify(envelope, ring, **wanted)  # type: ignore[arg-type]
    return caught.value


def test_what_a_trusted_key_signed_is_verified_in_whatever_order_its_parts_come() -> None:
    found = verify(signed(KEY), subjects=(TAIL, HEAD), facts={"created_by": "push", "parent": "0"}, time=NOON)
    assert (found.key_id, found.key_name) == (KEY.public.key_id, "press")
    assert found.statement == statement()


def test_a_statement_has_the_layout_of_in_toto() -> None:
    written = json.loads(statement().to_payload())
    assert written["_type"] == "https://in-toto.io/Statement/v1"
    assert written["predicateType"] == "urn:splitmesh:model-version:v1"
    assert written["subject"][0] == {
        "name": "head.onnx",
        "digest": {"sha256": "a" * 64},
        "annotations": {"size_bytes": 1000},
    }
    assert statement(subjects=(TAIL, HEAD)).to_payload() == statement().to_payload()


def test_another_payload_under_the_signature_is_refused() -> None:
    made = Envelope.from_json(signed(KEY))
    lie = statement(subjects=(HEAD, replace(TAIL, sha256="d" * 64))).to_payload()
    forged = Envelope(made.payload_type, lie, made.signatures).to_json()
    error = refused(forged, subjects=(HEAD, replace(TAIL, sha256="d" * 64)))
    assert error.reason is Reason.SIGNATURE_INVALID
    assert "changed" in error.message


def test_a_signature_for_another_model_is_refused() -> None:
    error = refused(signed(KEY, statement("boards")))
    assert error.reason is Reason.SIGNATURE_INVALID
    assert "'boards'" in error.message


def test_a_dataset_s_signature_is_none_of_a_model() -> None:
    made = sign_statement(Statement("dataset-version", MODEL, PARTS), KEY)
    assert refused(made).reason is Reason.SIGNATURE_INVALID


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        ((HEAD, replace(TAIL, sha256="d" * 64)), "tail.onnx differs"),
        ((HEAD, replace(TAIL, size_bytes=2001)), "tail.onnx differs"),
        ((replace(HEAD, sha256=TAIL.sha256), replace(TAIL, sha256=HEAD.sha256)), "head.onnx differs"),
        ((HEAD,), "tail.onnx is missing"),
        ((*PARTS, Subject("exit.onnx", "e" * 64, 5)), "exit.onnx was added"),
        ((HEAD, replace(TAIL, name="tail2.onnx")), "tail2.onnx was added"),
    ],
)
def test_other_contents_than_those_signed_are_refused(offered: tuple[Subject, ...], said: str) -> None:
    error = refused(signed(KEY), subjects=offered)
    assert error.reason is Reason.SIGNATURE_INVALID
    assert said in error.message


def test_a_content_named_twice_is_refused_in_the_version_and_in_the_statement() -> None:
    assert "twice" in refused(signed(KEY), subjects=(HEAD, HEAD, TAIL)).message
    twice = replace(statement(), subjects=(HEAD, HEAD, TAIL))
    assert "twice" in refused(sign_statement(twice, KEY)).message


def test_other_facts_than_those_signed_are_refused() -> None:
    assert "another lineage_sha256" in refused(signed(KEY), facts={"lineage_sha256": "d" * 64}).message
    verify(signed(KEY), facts={"nobody_signed": "this"})


def test_a_signature_by_another_key_under_a_trusted_id_is_refused() -> None:
    stranger = SigningKey.generate()
    made = Envelope.from_json(signed(stranger))
    forged = replace(made, signatures=(EnvelopeSignature(KEY.public.key_id, made.signatures[0].signature),))
    assert refused(forged.to_json()).reason is Reason.SIGNATURE_INVALID


def test_a_key_that_nobody_trusts_is_unknown_and_an_envelope_without_signatures_is_unsigned() -> None:
    error = refused(signed(SigningKey.generate()))
    assert (error.reason, error.metadata["keyring"]) == (Reason.KEY_UNKNOWN, "1")
    bare = Envelope(PAYLOAD_TYPE, statement().to_payload(), ()).to_json()
    assert refused(bare).reason is Reason.SIGNATURE_MISSING
    assert refused(signed(ROOT)).reason is Reason.KEY_UNKNOWN  # a root signs keyrings only


def test_a_signed_keyring_or_text_is_no_statement() -> None:
    for kind, payload in (("text/x", statement().to_payload()), (PAYLOAD_TYPE, b'{"_type": "x"}')):
        assert refused(sign(kind, payload, [KEY]).to_json()).reason is Reason.SIGNATURE_INVALID


def test_a_key_may_sign_the_models_and_the_datasets_it_is_for_and_no_others() -> None:
    def limited(*models: str, datasets: Sequence[str] = ()) -> Keyring:
        return ring_of(ROOT, TrustedKey(KEY.public, "press", models=models, datasets=tuple(datasets)))

    verify(signed(KEY), limited("boards", "sold*"))
    verify(signed(KEY), limited())
    assert refused(signed(KEY), limited("boards*")).reason is Reason.KEY_UNKNOWN
    assert refused(signed(KEY), limited(datasets=["*"])).reason is Reason.KEY_UNKNOWN
    made = sign_statement(Statement("dataset-version", MODEL, (dataset_subject("f" * 64, 3),)), KEY)
    about = {"kind": "dataset-version", "subjects": (dataset_subject("f" * 64, 3),)}
    for pattern in ("*", "sold*", "d*", "dataset*"):
        assert refused(made, limited(pattern), **about).reason is Reason.KEY_UNKNOWN
    assert refused(made, limited("*", datasets=["boards"]), **about).reason is Reason.KEY_UNKNOWN
    verify(made, limited("boards", datasets=["sold*"]), **about)  # type: ignore[arg-type]
    verify(made, limited(), **about)  # type: ignore[arg-type]


def test_a_retired_key_vouches_for_what_it_signed_before_with_five_minutes_for_clocks() -> None:
    def retired(after_minutes: int) -> Keyring:
        until = NOON + after_minutes * MINUTE
        return ring_of(ROOT, TrustedKey(KEY.public, "press", state="retired", until=until))

    verify(signed(KEY), retired(60), time=NOON + 30 * MINUTE)
    verify(signed(KEY), retired(-4), time=NOON)
    assert refused(signed(KEY), retired(-6)).reason is Reason.KEY_REVOKED
    assert refused(signed(KEY), retired(60), time=NOON + 66 * MINUTE).reason is Reason.KEY_REVOKED


def test_a_retired_key_that_does_not_say_when_it_signed_vouches_for_nothing() -> None:
    ring = ring_of(ROOT, TrustedKey(KEY.public, "press", state="retired", until=NOON))
    undated = sign_statement(replace(statement(), facts={}), KEY)
    assert refused(undated, ring).reason is Reason.KEY_REVOKED
    verify(undated, ring, time=NOON - MINUTE)
    for text in ("yesterday", "2026-11-20T12:00:00"):
        assert refused(signed(KEY, statement(facts={"signed_at": text})), ring).reason is Reason.SIGNATURE_INVALID


def test_a_revoked_key_vouches_for_nothing_and_the_refusal_says_why() -> None:
    ring = ring_of(ROOT, TrustedKey(KEY.public, "press", state="revoked", until=NOON, reason="stolen laptop"))
    error = refused(signed(KEY), ring, time=NOON - 60 * MINUTE)
    assert error.reason is Reason.KEY_REVOKED
    assert "stolen laptop" in error.message


def test_of_two_signatures_the_good_one_counts() -> None:
    both = sign(PAYLOAD_TYPE, statement().to_payload(), [KEY, OTHER]).to_json()
    ring = ring_of(ROOT, TrustedKey(KEY.public, "press", state="revoked", until=NOON), TrustedKey(OTHER.public, "lab"))
    assert verify(both, ring).key_name == "lab"


@pytest.mark.parametrize(
    "change",
    [
        {"subject": []},
        {"subject": [{"name": "a", "digest": {"sha256": "A" * 64}, "annotations": {"size_bytes": 1}}]},
        {"subject": [{"name": "a", "digest": {"sha256": "a" * 64}, "annotations": {"size_bytes": -1}}]},
        {"predicateType": "urn:splitmesh:keyring:v1"},
        {"predicate": {"name": MODEL, "facts": {"x": "y" * 2000}}},
        {"predicate": {"name": MODEL, "facts": {str(number): "" for number in range(65)}}},
        {"_type": "https://in-toto.io/Statement/v0.1"},
    ],
)
def test_what_is_no_statement_of_ours_is_refused(change: dict[str, object]) -> None:
    payload = json.dumps({**json.loads(statement().to_payload()), **change}).encode()
    with pytest.raises(MeshError) as caught:
        Statement.from_payload(payload)
    assert caught.value.reason is Reason.SIGNATURE_INVALID
