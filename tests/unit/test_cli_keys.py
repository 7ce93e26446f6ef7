"""`splitmesh keys`: files nobody else reads, and keyrings made from the newest one, whoever else makes one at the same time."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from splitmesh.cli import keys, keys_work
from splitmesh.errors import MeshError, Reason
from splitmesh.trust.keyring import Keyring, not_anchored, sign_keyring, version_of
from splitmesh.trust.keys import PublicKey, SigningKey, public_keys
from splitmesh.trust.ring_changes import with_key
from splitmesh.trust.trusted_key import TrustedKey


@dataclass
class Registry:
    """Keeps keyrings as the registry does, of its own roots where it has some; ``before_put`` lets somebody else be faster."""

    envelopes: list[bytes] = field(default_factory=list)
    roots: Sequence[PublicKey] = ()
    before_put: Callable[[], None] = lambda: None

    async def keyrings(self, after: int = 0) -> Sequence[bytes]:
        return [envelope for envelope in self.envelopes if version_of(envelope) > after]

    async def put_keyring(self, envelope: bytes) -> int:
        self.before_put()
        version = version_of(envelope)
        if self.roots and not self.envelopes:
            if Keyring.anchor(self.roots, envelope) is None:
                raise not_anchored(self.roots)
        elif version != (version_of(self.envelopes[-1]) if self.envelopes else 0) + 1:
            raise MeshError(Reason.KEYRING_STALE, "it does not follow the newest")
        self.envelopes.append(envelope)
        return version


@dataclass
class Shell:
    """A folder with a root key, and a registry."""

    folder: Path
    registry: Registry

    def run(self, *arguments: object, code: int = 0) -> Any:
        """The command's JSON; with another code what it printed."""
        text = [*map(str, arguments), *(["--json"] if code == 0 else [])]
        ended = CliRunner().invoke(keys.app, text)
        assert ended.exit_code == code, (ended.output, ended.exception)
        return json.loads(ended.stdout) if code == 0 else ended.output

    def key(self, name: str) -> Path:
        self.run("new", self.folder / name)
        return self.folder / name

    def newest(self) -> Keyring:
        return Keyring.follow(public_keys((self.folder / "roots.pem").read_bytes()), self.registry.envelopes)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    registry = Registry()

    @asynccontextmanager
    async def channels() -> AsyncIterator[None]:
        yield None

    monkeypatch.setattr(keys_work, "channels", channels)
    monkeypatch.setattr(keys_work, "RegistryCalls", lambda _: registry)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("SPLITMESH_TRUST_ROOT", str(tmp_path / "roots.pem"))
    return Shell(tmp_path, registry)


@pytest.fixture
def begun(shell: Shell) -> Shell:
    root = shell.key("root.pem")
    shell.run("init", "--root", root, "--pin", shell.folder / "roots.pem")
    return shell


def test_a_new_private_key_is_for_its_owner_s_eyes_only_and_nothing_is_overwritten(shell: Shell) -> None:
    file = shell.folder / "keys" / "key.pem"  # the folder is made
    made = shell.run("new", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = SigningKey.from_pem(file.read_bytes())
    assert PublicKey.from_pem(file.with_name("key.pem.pub").read_bytes()) == key.public
    assert made["key_id"] == key.public.key_id
    assert shell.run("show", file) == shell.run("show", f"{file}.pub") == {"key_ids": [key.public.key_id]}
    content = file.read_bytes()
    shell.run("new", file, code=1)
    file.unlink()
    shell.run("new", file, code=1)  # the public half is still there
    assert not file.exists()
    file.with_name("key.pem.pub").unlink()
    file.write_bytes(content)
    shell.run("new", file, code=1)
    assert file.read_bytes() == content


def test_the_first_keyring_holds_the_roots_and_what_is_pinned_verifies_it(shell: Shell) -> None:
    first, second = shell.key("a.pem"), shell.key("b.pem")
    shown = shell.run("init", "--root", first, "--root", second, "--threshold", 2, "--pin", shell.folder / "roots.pem")
    assert (shown["version"], shown["threshold"], len(shown["root_ids"])) == (1, 2, 2)
    assert shell.newest().version == 1
    shell.run("init", "--root", first, code=1)  # there is one
    assert shell.run("list") == shown


def test_a_key_is_trusted_retired_and_revoked(begun: Shell) -> None:
    root, press = begun.folder / "root.pem", begun.key("press.pem")
    trust = ("trust", "press", "--public", f"{press}.pub", "--root", root)
    shown = begun.run(*trust, "--models", "solder*", "--models", "joints", "--datasets", "boards")
    assert [(key["name"], key["state"], key["models"], key["datasets"]) for key in shown["keys"]] == [
        ("press", "active", ["solder*", "joints"], ["boards"])
    ]
    assert "models solder*, joints; datasets boards" in CliRunner().invoke(keys.app, ["list"]).output
    begun.run(*trust, "--models", "dataset:boards", code=1)
    assert begun.run(*trust)["keys"][0]["models"] == []
    assert begun.run("retire", "press", "--root", root)["keys"][0]["state"] == "retired"
    shown = begun.run("revoke", "press", "--root", root, "--reason", "stolen")
    assert (shown["keys"][0]["state"], shown["keys"][0]["reason"]) == ("revoked", "stolen")
    assert begun.newest().version == 5
    begun.run(*trust, code=1)
    assert "stolen" in CliRunner().invoke(keys.app, ["list"]).output


def test_a_change_without_enough_roots_never_reaches_the_registry(begun: Shell) -> None:
    stranger, press = begun.key("stranger.pem"), begun.key("press.pem")
    begun.run("trust", "press", "--public", f"{press}.pub", "--root", stranger, code=1)
    begun.run("trust", "two words", "--public", f"{press}.pub", "--root", begun.folder / "root.pem", code=1)
    begun.run("retire", "nobody", "--root", begun.folder / "root.pem", code=1)
    assert len(begun.registry.envelopes) == 1


def test_a_change_is_made_again_when_somebody_else_was_faster(begun: Shell) -> None:
    root, press = begun.folder / "root.pem", begun.key("press.pem")
    other = SigningKey.generate()

    def faster() -> None:
        begun.registry.before_put = lambda: None
        ring = with_key(begun.newest(), TrustedKey(other.public, "other"))
        begun.registry.envelopes.append(sign_keyring(ring, [SigningKey.from_pem(root.read_bytes())]))

    begun.registry.before_put = faster
    shown = begun.run("trust", "press", "--public", f"{press}.pub", "--root", root)
    assert (shown["version"], [key["name"] for key in shown["keys"]]) == (3, ["other", "press"])


def test_roots_are_replaced_and_who_pinned_the_old_ones_follows(begun: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    root, new, press = begun.folder / "root.pem", begun.key("new.pem"), begun.key("press.pem")
    pinned = begun.folder / "new-roots.pem"
    begun.run("rotate-root", "--root", root, "--new", new, "--pin", pinned)
    trust = ("trust", "press", "--public", f"{press}.pub", "--root")
    begun.run(*trust, root, code=1)
    shown = begun.run(*trust, new)
    assert begun.newest().version == shown["version"] == 3
    monkeypatch.setenv("SPLITMESH_TRUST_ROOT", str(pinned))
    assert begun.run("list") == shown


def test_what_is_no_key_and_a_root_that_is_not_named_are_refused(begun: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    text = begun.folder / "text"
    text.write_text("not a key")
    begun.run("show", text, code=1)
    assert "cannot be read" in begun.run("show", begun.folder / "none", code=1)
    assert "cannot be made" in begun.run("new", text / "key.pem", code=1)
    begun.run("trust", "press", "--public", text, "--root", begun.folder / "root.pem", code=1)
    monkeypatch.delenv("SPLITMESH_TRUST_ROOT")
    begun.run("list", code=1)


def test_a_registry_that_came_back_from_an_older_backup_gets_again_what_it_lost_before_anything_is_changed(
    begun: Shell,
) -> None:
    root, press, lab = begun.folder / "root.pem", begun.key("press.pem"), begun.key("lab.pem")
    begun.run("trust", "press", "--public", f"{press}.pub", "--root", root)
    begun.run("revoke", "press", "--root", root, "--reason", "lost")
    whole = list(begun.registry.envelopes)
    del begun.registry.envelopes[1:]
    shown = begun.run("trust", "lab", "--public", f"{lab}.pub", "--root", root)
    assert [(key["name"], key["state"]) for key in shown["keys"]] == [("press", "revoked"), ("lab", "active")]
    assert begun.registry.envelopes[:3] == whole
    for lost in (begun.registry.envelopes[2:], list(begun.registry.envelopes)):
        del begun.registry.envelopes[-len(lost) :]
        assert "they are there again" in CliRunner().invoke(keys.app, ["list"]).output
        assert begun.newest().version == 4
    begun.registry.envelopes.clear()
    assert begun.run("init", "--root", root, "--pin", begun.folder / "roots.pem")["version"] == 4
    assert begun.newest().version == 4
    assert "already" in begun.run("init", "--root", root, code=1)


def test_a_registry_that_was_set_back_and_changed_since_is_told_from_the_one_that_was_seen(begun: Shell) -> None:
    root, press = begun.folder / "root.pem", begun.key("press.pem")
    first = begun.newest()
    begun.run("trust", "press", "--public", f"{press}.pub", "--root", root)
    other = with_key(first, TrustedKey(SigningKey.generate().public, "other"))
    begun.registry.envelopes[1:] = [sign_keyring(other, [SigningKey.from_pem(root.read_bytes())])]
    assert "set back" in begun.run("revoke", "press", "--root", root, "--reason", "lost", code=1)
    assert len(begun.registry.envelopes) == 2


@pytest.fixture
def rotated(begun: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Four keyrings, the last of a new root, which is what this machine pins."""
    root, new, press = begun.folder / "root.pem", begun.key("new.pem"), begun.key("press.pem")
    begun.run("trust", "press", "--public", f"{press}.pub", "--root", root)
    begun.run("revoke", "press", "--root", root, "--reason", "lost")
    pinned = begun.folder / "new-roots.pem"
    begun.run("rotate-root", "--root", root, "--new", new, "--pin", pinned)
    monkeypatch.setenv("SPLITMESH_TRUST_ROOT", str(pinned))
    return begun


def test_who_pins_the_new_roots_gives_back_keyrings_of_the_old_ones_as_well(
    rotated: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(rotated.registry.envelopes)
    for home in ("state", "state of another desk"):
        monkeypatch.setenv("XDG_STATE_HOME", str(rotated.folder / home))
        for left in (4, 2, 0):
            del rotated.registry.envelopes[left:]
            assert rotated.run("list")["root_ids"] == rotated.run("show", rotated.folder / "new.pem")["key_ids"]
            assert rotated.registry.envelopes == whole


def test_an_empty_registry_that_pins_the_new_roots_begins_with_theirs(rotated: Shell) -> None:
    *_, last = rotated.registry.envelopes
    rotated.registry.envelopes.clear()
    rotated.registry.roots = public_keys((rotated.folder / "new-roots.pem").read_bytes())
    rotated.run("list")
    assert rotated.registry.envelopes == [last]
    rotated.registry.envelopes.clear()
    rotated.registry.roots = [SigningKey.generate().public]
    assert "no keyring begins" in rotated.run("list", code=1)


def test_a_machine_that_keeps_too_little_to_give_back_says_which_roots_it_takes(rotated: Shell) -> None:
    for file in rotated.folder.glob("state/**/earlier/00000002.json"):
        file.write_bytes(b"damaged")
    del rotated.registry.envelopes[3:]
    assert rotated.run("list")["version"] == 4  # the one before is there
    del rotated.registry.envelopes[1:]
    told = " ".join(rotated.run("retire", "press", "--root", rotated.folder / "new.pem", code=1).split())
    assert "lacks keyrings from 2 on, and this machine keeps those from 3 on" in told
    assert len(rotated.registry.envelopes) == 1


def test_a_pin_that_cannot_be_written_changes_no_root(begun: Shell) -> None:
    pinned, new = begun.folder / "roots.pem", begun.key("new.pem")
    before = pinned.read_bytes()
    rotate = ("rotate-root", "--root", begun.folder / "root.pem", "--new", new, "--pin")
    assert "is there already" in begun.run(*rotate, pinned, code=1)
    assert "cannot be written" in begun.run(*rotate, begun.folder / "none" / "roots.pem", code=1)
    assert (len(begun.registry.envelopes), pinned.read_bytes()) == (1, before)


def test_of_two_chains_the_one_that_was_seen_is_shown_and_a_new_root_leads_out(
    begun: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, new, press = begun.folder / "root.pem", begun.key("new.pem"), begun.key("press.pem")
    trust = ("trust", "press", "--public", f"{press}.pub", "--root")
    begun.run(*trust, root)
    revoked = begun.run("revoke", "press", "--root", root, "--reason", "stolen")
    del begun.registry.envelopes[2:]
    monkeypatch.setenv("XDG_STATE_HOME", str(begun.folder / "empty"))
    begun.run("retire", "press", "--root", root)  # at a desk that had not seen the third
    monkeypatch.setenv("XDG_STATE_HOME", str(begun.folder / "state"))
    shown = CliRunner().invoke(keys.app, ["list", "--json"])
    assert (json.loads(shown.stdout), "XDG_STATE_HOME" in shown.stderr) == (revoked, True)
    pinned = begun.folder / "new-roots.pem"
    rotate = ("rotate-root", "--root", root, "--new", new, "--pin", pinned)
    begun.run(*rotate, code=1)
    monkeypatch.setenv("XDG_STATE_HOME", str(begun.folder / "empty as well"))
    begun.run(*rotate)
    monkeypatch.setenv("SPLITMESH_TRUST_ROOT", str(pinned))
    monkeypatch.setenv("XDG_STATE_HOME", str(begun.folder / "state"))
    shown = begun.run("revoke", "press", "--root", new, "--reason", "stolen")
    assert (shown["version"], shown["keys"][0]["state"]) == (5, "revoked")
    assert begun.run("list") == shown
