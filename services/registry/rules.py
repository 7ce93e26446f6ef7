"""Everything that answers for one registry, as the servicers take it."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from services.registry.aliases import Aliases
from services.registry.content.port import ContentStore
from services.registry.delta import Deltas
from services.registry.events import Events
from services.registry.garbage import Garbage
from services.registry.metadata.records import Actor
from services.registry.profiles import Profiles
from services.registry.pull import Pull
from services.registry.push import Push
from services.registry.signatures import Signatures
from services.registry.small import SmallContents
from services.registry.versions import Versions
from services.registry.watch import ModelWatch

MAX_PEER_CHARS = 128


@dataclass(frozen=True)
class Rules:
    """The objects that know the rules, and how long a client may read nothing."""

    contents: ContentStore
    push: Push
    pull: Pull
    small: SmallContents
    deltas: Deltas
    versions: Versions
    aliases: Aliases
    watch: ModelWatch
    signatures: Signatures
    garbage: Garbage
    events: Events
    profiles: Profiles
    send_idle_s: float


def actor_of(context: grpc.aio.ServicerContext, by: str = "") -> Actor:
    """Who calls, as far as the call itself says so."""
    return Actor(by, str(context.peer())[:MAX_PEER_CHARS])
