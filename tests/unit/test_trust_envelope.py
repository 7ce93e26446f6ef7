"""Keys and envelopes: what other tools read and write, and every way in which an envelope can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.trust.envelope import MAX_ENVELOPE_BYTES, Envelope, EnvelopeSignature, encode, sign
from splitmesh.trust.keys import PublicKey, SigningKey, public_keys

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
"""RFC 8032, 7.1, test 1."""
RFC_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
RFC_SIGNATURE = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)


def test_what_is_signed_is_encoded_as_the_specification_says() -> None:
    # The example of https://github.com/secure-systems-lab/dsse, protocol.md.
    assert encode("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert encode("é", "ü".encode()) == b"DSSEv1 2 \xc3\xa9 2 \xc3\xbc"  # bytes are counted, not characters


def test_an_ed25519_signature_is_that_of_the_rfc() -> None:
    public = PublicKey(RFC_PUBLIC)
    assert public.verify(RFC_SIGNATURE, b"")
    assert not public.verify(RFC_SIGNATURE, b"x")
    assert not public.verify(RFC_SIGNATURE[:-1] + b"\0", b"")
    assert not public.verify(b"", b"")


def test_a_key_comes_back_from_its_files_and_says_no_secret() -> None:
    key = SigningKey.generate()
    again = SigningKey.from_pem(key.to_pem())
    assert again.public == key.public == PublicKey.from_pem(key.public.to_pem())
    assert PublicKey.from_text(key.public.to_text()) == key.public
    assert key.public.verify(again.sign(b"x"), b"x")
    assert str(again.to_pem()) not in repr(key)
    assert key.public.key_id[:16] in repr(key)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this host")
def test_keys_of_openssl_are_read(tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(private)], check=True)
    subprocess.run(["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public)], check=True)
    assert SigningKey.from_pem(private.read_bytes()).public == PublicKey.from_pem(public.read_bytes())


def test_a_file_of_several_public_keys_is_read_each_once() -> None:
    first, second = SigningKey.generate().public, SigningKey.generate().public
    text = b"# roots\n" + first.to_pem() + second.to_pem() + first.to_pem()
    assert public_keys(text) == (first, second)


RSA = b"""-----BEGIN PUBLIC KEY-----
MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBALqbHeRLCyOdykC5SDLqI49ArYGYG1mq
aH9/GnWjGavZM02fos4lc2w6tCchcUBNtJvGqKwhC5JEnx3RYoSX2ucCAwEAAQ==
-----END PUBLIC KEY-----
"""


@pytest.mark.parametrize("text", [b"", b"nonsense", RSA, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"])
def test_what_is_no_key_is_refused(text: bytes) -> None:
    for read in (public_keys, SigningKey.from_pem):
        with pytest.raises(MeshError) as caught:
            read(text)
        assert caught.value.reason is Reason.FIELD_INVALID


def test_too_long_a_file_is_no_key() -> None:
    with pytest.raises(MeshError, match="bytes are no key"):
        public_keys(SigningKey.generate().public.to_pem() + b"x" * 100_000)


def test_an_envelope_is_read_as_written_and_by_either_alphabet() -> None:
    key = SigningKey.generate()
    made = sign("text/x", b"\xff\xfe\xfb???>>>", [key])
    assert Envelope.from_json(made.to_json()) == made
    fields = json.loads(made.to_json())
    fields["payload"] = fields["payload"].replace("+", "-").replace("/", "_")
    fields["more"] = "of a later version"
    assert Envelope.from_json(json.dumps(fields).encode()) == made
    assert made.signed_by(key.public)
    assert made.to_json() == Envelope.from_json(made.to_json()).to_json()


def test_a_signature_is_good_for_its_payload_and_its_type_only() -> None:
    key = SigningKey.generate()
    made = sign("text/x", b"payload", [key])
    assert not Envelope("text/x", b"another", made.signatures).signed_by(key.public)
    assert not Envelope("text/y", b"payload", made.signatures).signed_by(key.public)
    assert not made.signed_by(SigningKey.generate().public)


def _broken() -> list[bytes]:
    good = json.loads(sign("text/x", b"payload", [SigningKey.generate()]).to_json())
    short = EnvelopeSignature("id", b"short")
    many = [{"keyid": "", "sig": "A" * 88}] * 33
    return [
        b"",
        b"{}",
        b"[" * 100_000,
        b"\xff\xff",
        json.dumps({**good, "payload": "not base64!"}).encode(),
        json.dumps({**good, "payload": 7}).encode(),
        json.dumps({**good, "signatures": "all"}).encode(),
        json.dumps({**good, "signatures": many}).encode(),
        json.dumps({**good, "payloadType": "x" * 300}).encode(),
        Envelope("text/x", b"payload", (short,)).to_json(),
        b" " * (MAX_ENVELOPE_BYTES + 1),
        Envelope("text/x", b"x" * (1024 * 1024 + 1), ()).to_json(),
    ]


@pytest.mark.parametrize("content", _broken(), ids=lambda content: repr(content[:24]))
def test_what_is_no_envelope_is_refused(content: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        Envelope.from_json(content)
    assert caught.value.reason is Reason.SIGNATURE_INVALID
