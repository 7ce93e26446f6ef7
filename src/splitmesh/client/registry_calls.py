"""Plain questions to the registry and plain orders: one request, one answer, a deadline on each.

Transfers, signing, verifying and watching are in ``registry``, which builds on this.
"""

from __future__ import annotations

from collections.abc import Sequence

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.api.registry.v1.registry_pb2_grpc import RegistryServiceStub
from splitmesh.client.artifacts import SERVICE
from splitmesh.client.profiles import profile_from_message, profile_to_message
from splitmesh.client.registry_messages import (
    answer_of,
    event_from_message,
    garbage_from_message,
    model_from_message,
    move_from_message,
)
from splitmesh.client.registry_values import AliasMove, Garbage, ModelInfo, RegistryEvent, VersionInfo
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.model.profile_data import Profile

PAGE = 1000
SIGN_DEADLINE_S = 30.0
"""Deadline of calls that verify or write much, seconds."""
COLLECT_DEADLINE_S = 600.0
"""Deadline of CollectGarbage, seconds: it looks at everything that is stored."""


class RegistryCalls:
    """Speaks to the service ``registry`` that ``channels`` can find; every method raises MeshError.

    What kept the registry from answering (SERVICE_UNAVAILABLE, DEADLINE_EXPIRED, NOT_READY) and FIELD_INVALID can come from
    each; the docstrings name the others.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def get_version(self, model: str, version: int | None = None, *, alias: str | None = None) -> VersionInfo:
        """By number, by alias, or the newest; MODEL_NOT_FOUND, VERSION_NOT_FOUND, ALIAS_NOT_FOUND."""
        if version is not None and alias is not None:
            raise field_error("alias", "ask by version or by alias, not both")
        request = pb.GetVersionRequest(model=model)
        if alias is not None:
            request.alias = alias
        elif version is not None:
            request.version = version
        async with mesh_errors():
            response = await (await self._stub()).GetVersion(request)
        return answer_of(response.version, model, version)

    async def list_models(self) -> list[ModelInfo]:
        """All, by name."""
        found: list[ModelInfo] = []
        request = pb.ListModelsRequest(page_size=PAGE)
        while True:
            async with mesh_errors():
                page = await (await self._stub()).ListModels(request)
            found += [model_from_message(message) for message in page.models]
            if not page.next_page_token:
                return found
            request.page_token = _next_page(page.next_page_token, page.models)

    async def list_versions(self, model: str) -> list[VersionInfo]:
        """All of one model, newest first; MODEL_NOT_FOUND."""
        found: list[VersionInfo] = []
        request = pb.ListVersionsRequest(model=model, page_size=PAGE)
        while True:
            async with mesh_errors():
                page = await (await self._stub()).ListVersions(request)
            found += [answer_of(message, model) for message in page.versions]
            if not page.next_page_token:
                return found
            request.page_token = _next_page(page.next_page_token, page.versions)

    async def delete_version(self, model: str, version: int, *, deleted_by: str, reason: str = "") -> None:
        """Takes a version away for ever; its contents go with the next collection.

        MODEL_NOT_FOUND, VERSION_NOT_FOUND; VERSION_IN_USE, an alias points at it or somebody holds it: the metadata says who.
        """
        request = pb.DeleteVersionRequest(model=model, version=version, deleted_by=deleted_by, reason=reason)
        async with mesh_errors():
            await (await self._stub()).DeleteVersion(request)

    async def hold_version(self, model: str, version: int, holder: str, *, hold_s: float = 0.0) -> None:
        """Keeps a version from being deleted for so many seconds, 0: until released; MODEL_NOT_FOUND, VERSION_NOT_FOUND.

        A second hold of the same holder replaces its first.
        """
        request = pb.HoldVersionRequest(model=model, version=version, holder=holder, hold_s=hold_s)
        async with mesh_errors():
            await (await self._stub()).HoldVersion(request)

    async def release_version(self, model: str, version: int, holder: str) -> None:
        """This holder needs the version no more; fine when it did not hold it. MODEL_NOT_FOUND, VERSION_NOT_FOUND."""
        request = pb.ReleaseVersionRequest(model=model, version=version, holder=holder)
        async with mesh_errors():
            await (await self._stub()).ReleaseVersion(request)

    async def collect_garbage(self, *, dry_run: bool = False) -> Garbage:
        """Removes what nothing names and nobody touched lately; only counts it with ``dry_run``."""
        async with mesh_errors():
            stub = await self._stub()
            answer = await stub.CollectGarbage(pb.CollectGarbageRequest(dry_run=dry_run), timeout=COLLECT_DEADLINE_S)
        return garbage_from_message(answer)

    async def add_signature(self, model: str, version: int, signature: bytes) -> None:
        """Adds a DSSE envelope over the version's statement, or replaces the one of the same key.

        MODEL_NOT_FOUND, VERSION_NOT_FOUND, SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED.
        """
        request = pb.AddSignatureRequest(model=model, version=version, signature=signature)
        async with mesh_errors():
            await (await self._stub()).AddSignature(request, timeout=SIGN_DEADLINE_S)

    async def set_alias(
        self, model: str, alias: str, version: int, *, expected: int | None = None, moved_by: str = "", reason: str = ""
    ) -> int:
        """Points an alias at a version, 0: takes it away; the version it pointed at before, 0: none.

        Args:
            model: by name.
            alias: by name.
            version: where it shall point.
            expected: where it must point before, 0: nowhere; None: wherever.
            moved_by: who moves it; at most 128 characters.
            reason: why; at most 1,000 characters.

        Raises:
            MeshError: MODEL_NOT_FOUND, VERSION_NOT_FOUND; ALIAS_NOT_FOUND, there is none to take away; ALIAS_MOVED, it is
                not where it was expected: the metadata's ``version`` says where it is. Where that is the version wanted, this
                very call may have moved it, and its first answer was lost on the way.
        """
        request = pb.SetAliasRequest(
            model=model, alias=alias, version=version, expected_version=expected, moved_by=moved_by, reason=reason
        )
        async with mesh_errors():
            response = await (await self._stub()).SetAlias(request)
        return int(response.previous_version)

    async def alias_moves(self, model: str, alias: str = "", *, most: int = PAGE) -> list[AliasMove]:
        """The last ``most`` moves, newest first; of all the model's aliases unless one is named. MODEL_NOT_FOUND."""
        found: list[AliasMove] = []
        request = pb.ListAliasMovesRequest(model=model, alias=alias)
        while len(found) < most:
            request.page_size = min(PAGE, most - len(found))
            async with mesh_errors():
                page = await (await self._stub()).ListAliasMoves(request)
            found += [move_from_message(message, model, alias) for message in page.moves]
            if not page.next_page_token:
                break
            request.page_token = _next_page(page.next_page_token, page.moves)
        return found[:most]

    async def events(self, name: str = "", *, most: int = PAGE) -> list[RegistryEvent]:
        """The last ``most`` things that were done, newest first; only to this model, dataset or ``keyring`` if named."""
        found: list[RegistryEvent] = []
        request = pb.ListEventsRequest(name=name)
        while len(found) < most:
            request.page_size = min(PAGE, most - len(found))
            async with mesh_errors():
                page = await (await self._stub()).ListEvents(request)
            found += [event_from_message(message) for message in page.events]
            if not page.next_page_token:
                break
            request.page_token = _next_page(page.next_page_token, page.events)
        return found[:most]

    async def put_keyring(self, keyring: bytes) -> int:
        """Adds the next keyring, a DSSE envelope; its version.

        SIGNATURE_INVALID; KEYRING_STALE, it does not follow the newest one.
        """
        async with mesh_errors():
            stub = await self._stub()
            answer = await stub.PutKeyring(pb.PutKeyringRequest(keyring=keyring), timeout=SIGN_DEADLINE_S)
        return int(answer.version)

    async def keyrings(self, after: int = 0) -> Sequence[bytes]:
        """Envelopes of the keyrings with versions above ``after``, oldest first; not verified."""
        async with mesh_errors():
            answer = await (await self._stub()).ListKeyrings(pb.ListKeyringsRequest(after_version=after))
        return list(answer.keyrings)

    async def put_profile(self, model: str, version: int, profile: Profile) -> None:
        """Keeps a profile; an earlier one with its key is replaced. MODEL_NOT_FOUND, VERSION_NOT_FOUND, STORAGE_FULL."""
        request = pb.PutProfileRequest(model=model, version=version, profile=profile_to_message(profile))
        async with mesh_errors():
            await (await self._stub()).PutProfile(request)

    async def list_profiles(self, model: str, version: int, node: str = "") -> list[Profile]:
        """Every profile of a version's whole model, newest first; only one node's unless ``node`` is empty.

        Raises MeshError MODEL_NOT_FOUND, VERSION_NOT_FOUND.
        """
        request = pb.ListProfilesRequest(model=model, version=version, node=node)
        async with mesh_errors():
            answer = await (await self._stub()).ListProfiles(request)
        return [profile_from_message(one.profile) for one in answer.profiles]

    async def _stub(self) -> RegistryServiceStub:
        return RegistryServiceStub(await self._channels.to(SERVICE))


def _next_page(token: str, page: Sequence[object]) -> str:
    """The token; PROTOCOL_VIOLATION after a page without anything on it: such pages could go on for ever."""
    if not page:
        raise MeshError(Reason.PROTOCOL_VIOLATION, "the registry sends an empty page and says that more follow")
    return token
