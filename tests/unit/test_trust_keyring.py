"""Following keyrings: one after the other, by enough of the right roots, never back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.trust.envelope import Envelope, EnvelopeSignature, sign
from splitmesh.trust.keyring import PAYLOAD_TYPE, Keyring, leading_to, sign_keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.ring_changes import first_keyring, pick, with_key, with_roots, without_key
from splitmesh.trust.trusted_key import TrustedKey
from tests.support.signing import NOON, chain, ring_of, signed

A, B, C, D = (SigningKey.generate() for _ in range(4))
PRESS, LAB = SigningKey.generate(), SigningKey.generate()
FIRST = first_keyring([A.public, B.public, C.public], 2)
PINNED = FIRST.roots
ONE = sign_keyring(FIRST, [A, B, C])
SECOND = with_key(FIRST, TrustedKey(PRESS.public, "press", since=NOON))
TWO = sign_keyring(SECOND, [A, C])


def reason_of(envelopes: Sequence[bytes], roots: Sequence[object] = PINNED) -> Reason:
    with pytest.raises(MeshError) as caught:
        Keyring.follow(roots, envelopes)  # type: ignore[arg-type]
    return caught.value.reason


def test_a_keyring_that_follows_another_one_than_the_one_that_is_known_is_refused_whoever_signed_it() -> None:
    revoked = without_key(SECOND, "press", NOON, revoked=True, reason="stolen")
    known = Keyring.follow(PINNED, [ONE, TWO, sign_keyring(revoked, [A, B])])
    # The registry came back from a backup of before the revocation, and somebody went on from there.
    fork = with_key(SECOND, TrustedKey(LAB.public, "lab"))
    further = with_key(fork, TrustedKey(SigningKey.generate().public, "new"))
    assert Keyring.follow(PINNED, [ONE, TWO, sign_keyring(fork, [A, B]), sign_keyring(further, [A, B])]) == further
    with pytest.raises(MeshError, match="another keyring 3") as caught:
        known.next(sign_keyring(further, [A, B, C]))
    assert caught.value.reason is Reason.KEYRING_STALE


def test_what_names_the_keyring_before_is_the_digest_of_the_payload_that_was_signed() -> None:
    # As another program may write it: in another order, with fields that are not known here.
    payload = json.dumps({**json.loads(SECOND.to_payload()), "colour": "green"}, indent=1).encode()
    written = sign(PAYLOAD_TYPE, payload, [A, C]).to_json()
    known = Keyring.follow(PINNED, [ONE, written])
    assert (known, known.sha256) == (SECOND, hashlib.sha256(payload).hexdigest())
    assert known.next(sign_keyring(with_key(known, TrustedKey(LAB.public, "lab")), [A, B])).version == 3
    ours = sign_keyring(with_key(SECOND, TrustedKey(LAB.public, "lab")), [A, B])
    assert reason_of([ONE, written, ours]) is Reason.KEYRING_STALE


def test_a_keyring_in_which_a_revoked_key_is_back_or_forgotten_is_refused() -> None:
    revoked = without_key(SECOND, "press", NOON, revoked=True)
    for keys in ((), SECOND.keys, (replace(revoked.keys[0], state="retired"),)):
        back = replace(revoked, version=4, previous=revoked.sha256, keys=keys)
        chain = [ONE, TWO, sign_keyring(revoked, [A, B]), sign_keyring(back, [A, B, C])]
        assert reason_of(chain) is Reason.KEY_REVOKED


def test_a_chain_is_followed_to_its_newest() -> None:
    assert Keyring.follow(PINNED, [ONE, TWO]) == SECOND
    assert Keyring.follow([C.public, A.public, B.public], [ONE]) == FIRST  # pinned in any order


def test_a_chain_with_a_gap_a_repetition_or_a_step_back_is_refused() -> None:
    third = sign_keyring(with_key(SECOND, TrustedKey(LAB.public, "lab")), [A, B])
    for wrong in ([ONE, third], [ONE, ONE], [ONE, TWO, ONE], [ONE, TWO, TWO]):
        assert reason_of(wrong) is Reason.KEYRING_STALE
    assert Keyring.follow(PINNED, [ONE, TWO, third]).version == 3


def test_too_few_roots_are_refused_also_where_one_signs_twice() -> None:
    assert reason_of([ONE, sign_keyring(SECOND, [B])]) is Reason.SIGNATURE_INVALID
    assert reason_of([ONE, sign_keyring(SECOND, [B, D, PRESS])]) is Reason.SIGNATURE_INVALID
    made = sign(PAYLOAD_TYPE, SECOND.to_payload(), [B])
    renamed = EnvelopeSignature(A.public.key_id, made.signatures[0].signature)
    twice = replace(made, signatures=(*made.signatures, *made.signatures, renamed)).to_json()
    assert reason_of([ONE, twice]) is Reason.SIGNATURE_INVALID


def test_the_first_keyring_needs_every_pinned_root() -> None:
    assert reason_of([sign_keyring(FIRST, [A, B])]) is Reason.SIGNATURE_INVALID
    lower = sign_keyring(replace(FIRST, threshold=1), [A])  # one stolen root makes no keyring of its own
    assert reason_of([lower]) is Reason.SIGNATURE_INVALID
    alone = sign_keyring(ring_of(A), [A])
    assert reason_of([alone]) is Reason.SIGNATURE_INVALID


def test_without_any_keyring_no_key_is_known() -> None:
    assert reason_of([]) is Reason.KEY_UNKNOWN


def test_a_changed_keyring_is_refused() -> None:
    made = Envelope.from_json(TWO)
    fields = json.loads(made.payload)
    fields["keys"][0]["key"] = LAB.public.to_text()
    assert reason_of([ONE, replace(made, payload=json.dumps(fields).encode()).to_json()]) is Reason.SIGNATURE_INVALID


def test_roots_are_rotated_over_several_versions_and_the_old_ones_count_no_more() -> None:
    third = with_roots(SECOND, [B.public, C.public, D.public], 2)
    fourth = with_roots(third, [D.public], 1)
    fifth = with_key(fourth, TrustedKey(LAB.public, "lab"))
    three, four = sign_keyring(third, [A, B, C, D]), sign_keyring(fourth, [B, C, D])
    whole = [ONE, TWO, three, four, sign_keyring(fifth, [D])]
    assert Keyring.follow(PINNED, whole) == fifth
    # Who pins later roots starts where they begin.
    assert Keyring.follow([D.public], whole) == fifth
    assert Keyring.follow(third.roots, whole) == fifth
    assert reason_of([ONE, TWO, three, four, sign_keyring(fifth, [A, B, C])]) is Reason.SIGNATURE_INVALID


def test_a_rotation_needs_enough_old_roots_and_all_new_ones() -> None:
    third = with_roots(SECOND, [B.public, D.public], 1)
    for signers in ([A, B], [D], [B, D], [A, D]):  # new roots missing, old ones missing, too few old ones, B missing
        assert reason_of([ONE, TWO, sign_keyring(third, signers)]) is Reason.SIGNATURE_INVALID
    assert Keyring.follow(PINNED, [ONE, TWO, sign_keyring(third, [A, B, D])]) == third


def test_a_lower_threshold_needs_every_root() -> None:
    third = with_roots(SECOND, SECOND.roots, 1)
    assert reason_of([ONE, TWO, sign_keyring(third, [A, B])]) is Reason.SIGNATURE_INVALID
    assert Keyring.follow(PINNED, [ONE, TWO, sign_keyring(third, [A, B, C])]).threshold == 1


def test_a_keyring_never_expires() -> None:
    assert b"expire" not in ONE
    assert "expires" not in json.loads(Envelope.from_json(ONE).payload)


def test_a_statement_about_a_version_is_no_keyring() -> None:
    assert reason_of([signed(A)], [A.public]) is Reason.SIGNATURE_INVALID


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"roots": []},
        {"roots": [A.public.to_text(), A.public.to_text()], "threshold": 1},
        {"roots": ["AAAA"], "threshold": 1},
        {"threshold": 0},
        {"threshold": 4},
        {"keys": [{"key": A.public.to_text(), "name": "root as a key", "state": "active"}]},
        {"keys": [{"key": A.public.to_text(), "name": "a", "state": "active"}]},
        {"keys": [{"key": LAB.public.to_text(), "name": "lab", "state": "retired"}]},
        {"keys": [{"key": LAB.public.to_text(), "name": "lab", "state": "active", "models": ["dataset:boards"]}]},
        {"keys": [{"key": LAB.public.to_text(), "name": "lab", "state": "good"}]},
        {"keys": [{"key": LAB.public.to_text(), "name": "lab", "state": "active", "until": "2026-01-01T00:00:00"}]},
        {"keys": [{"key": key.public.to_text(), "name": "lab", "state": "active"} for key in (LAB, PRESS)]},
    ],
)
def test_a_keyring_that_does_not_hold_together_is_refused_whoever_signed_it(change: dict[str, object]) -> None:
    payload = json.dumps({**json.loads(FIRST.to_payload()), **change}).encode()
    assert reason_of([sign(PAYLOAD_TYPE, payload, [A, B, C]).to_json()]) is Reason.SIGNATURE_INVALID


def test_keys_are_retired_and_revoked_by_name_or_id_and_a_revoked_one_never_comes_back() -> None:
    retired = without_key(SECOND, "press", NOON, revoked=False)
    assert [(key.state, key.until) for key in retired.keys] == [("retired", NOON)]
    revoked = without_key(retired, PRESS.public.key_id[:12], NOON, revoked=True, reason="lost")
    assert [(key.state, key.reason) for key in revoked.keys] == [("revoked", "lost")]
    assert [ring.version for ring in (SECOND, retired, revoked)] == [2, 3, 4]
    for again in (lambda: without_key(retired, "press", NOON, revoked=False), lambda: pick(SECOND, "nobody")):
        with pytest.raises(MeshError):
            again()
    with pytest.raises(MeshError) as caught:
        with_key(revoked, TrustedKey(PRESS.public, "press"))
    assert caught.value.reason is Reason.KEY_REVOKED


def test_a_name_is_used_again_after_its_key_retired_and_stands_for_the_active_one() -> None:
    renewed = with_key(without_key(SECOND, "press", NOON, revoked=False), TrustedKey(LAB.public, "press"))
    assert pick(renewed, "press").key_id == LAB.public.key_id
    with pytest.raises(MeshError, match="stands for several"):
        pick(without_key(renewed, "press", NOON, revoked=False), "press")


def test_a_keyring_comes_back_as_it_was_written() -> None:
    limited = TrustedKey(LAB.public, "lab", "retired", ("a*",), ("b", "[cd]?"), NOON, NOON, "moved away")
    ring = ring_of(A, limited)
    assert Keyring.follow([A.public], chain(A, ring)) == ring


def test_what_leads_to_a_keyring_goes_back_as_far_as_each_follows_from_the_one_before() -> None:
    third = sign_keyring(with_key(SECOND, TrustedKey(LAB.public, "lab")), [A, B])
    assert leading_to(third, [ONE, TWO]) == [ONE, TWO]
    assert leading_to(third, [b"damaged", ONE, TWO]) == [ONE, TWO]
    assert leading_to(third, [ONE, b"damaged", TWO]) == [TWO]
    other = sign_keyring(with_key(FIRST, TrustedKey(LAB.public, "lab")), [A, B, C])
    for before in ([], [ONE], [ONE, TWO, ONE], [ONE, other]):
        assert leading_to(third, before) == []
