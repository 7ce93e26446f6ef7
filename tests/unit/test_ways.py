"""Ways of a head: what is believed of those not gone yet, and when they are unloaded. Real sessions, no network."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from edge.head.active import ActiveModel, warm_up
from edge.head.ways import RESERVE, Way, Ways
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.client.registry import VersionInfo
from splitmesh.client.segment import SegmentLink
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.tcp_info import TcpFacts
from splitmesh.model.alternatives import Alternative
from splitmesh.model.manifest import HEAD, MANIFEST, WHOLE, Manifest
from splitmesh.runtime import open_session
from tests.support.models import split_version, whole_version

SPLIT = Alternative(version=0, name="cut", edge_ms=0.05, uplink_bytes=8000, cloud_ms=0.05, share=1.0)
EDGE = Alternative(version=1, name="edge only", edge_ms=40.0)


@pytest.fixture
async def ways() -> Ways:
    """A cut and the whole model."""
    channels = Channels(StaticDiscovery({}))
    cut, whole = split_version(), whole_version()
    loaded = []
    for number, (artifacts, name) in enumerate(((cut, HEAD), (whole, WHOLE)), start=1):
        info = VersionInfo("parts", number, 0, {}, "push", "", (), datetime(2026, 1, 1, tzinfo=UTC))
        link = SegmentLink(channels, "parts", number, "head-1") if name == HEAD else None
        session = open_session(artifacts[name])
        loaded.append(ActiveModel(info, Manifest.from_json(artifacts[MANIFEST]), session, link))
    return Ways([Way(loaded[0], SPLIT), Way(loaded[1], EDGE)], LinkEstimator(1e4, 10.0))


async def test_the_whole_model_stays_loaded_until_no_frame_can_need_it(ways: Ways) -> None:
    """An alias moves while a frame that began with the cut waits for its tail; then the tail fails."""
    whole = ways.whole()
    assert whole is not None
    with ways.current.use():
        retiring = asyncio.create_task(ways.retire())
        await asyncio.sleep(0.05)
        assert not retiring.done()
        with whole.use():
            warm_up(whole.session)
    async with asyncio.timeout(5):
        await retiring
    with pytest.raises(MeshError) as caught:
        whole.session.run({})
    assert caught.value.reason is Reason.NOT_READY


async def test_a_tiny_head_that_takes_longer_says_little_of_the_whole_model(ways: Ways) -> None:
    """0.05 ms planned and 0.5 ms seen is a call's fixed cost: the whole model is not ten times slower for it."""
    for _ in range(100):
        ways.saw_head(ways.current, 0.5)
        ways.saw_end(ways.current, uplink_bytes=8000, tail_ms=0.5)
    assert ways.whole_ms() < 2 * RESERVE * EDGE.edge_ms


async def test_a_host_that_is_slower_than_planned_is_believed_of_every_way(ways: Ways) -> None:
    ways.saw_head(ways.current, 10.0)
    assert ways.whole_ms() > 5 * RESERVE * EDGE.edge_ms


@pytest.fixture
def pings(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What calls without content to the tail are made; each takes 30 ms."""
    made: list[float] = []

    async def ping(timeout_s: float) -> float:
        made.append(timeout_s)
        return 30.0

    monkeypatch.setattr(ways.current.link, "ping", ping)
    return made


async def test_the_tail_is_asked_only_while_nothing_else_tells_the_round_trip(
    ways: Ways, pings: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    await ways._listen()
    assert len(pings) == 1, "nothing has crossed yet"
    await ways._listen()
    assert len(pings) == 1, "it has just been told"
    estimator = ways._estimator
    assert estimator is not None
    assert estimator.facts().rtt_ms == pytest.approx(30.0)
    monkeypatch.setattr("edge.head.ways.QUIET_MS", 0.0)
    await ways._listen()
    assert len(pings) == 2, "nothing told it since"
    facts = TcpFacts(31.0, 30.0, 1e3, 5, 0, 0)
    monkeypatch.setattr("edge.head.ways.tcp_facts", lambda peers: {("10.0.0.1", 7002): facts})
    number = estimator.sent(5000, 0.0)
    estimator.answered(number, 31.0, queue_ms=0.0, compute_ms=0.0)
    monkeypatch.setattr("edge.head.ways.QUIET_MS", 1e-9)
    await ways._listen()
    assert len(pings) == 2, "the kernel and the frames agree"


async def test_where_there_is_nothing_to_choose_the_tail_is_never_asked(ways: Ways, pings: list[float]) -> None:
    only = Ways.only(ways.current, LinkEstimator(1e4, 10.0))
    await only._listen()
    assert pings == []


async def test_what_the_kernel_knows_is_asked_of_the_tails_and_reaches_the_estimate(
    ways: Ways, pings: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[tuple[str, int]]] = []

    def tcp_facts(peers: set[tuple[str, int]]) -> dict[tuple[str, int], TcpFacts]:
        asked.append(peers)
        return {peer: TcpFacts(31.0, 30.0, 1e6, 10 * len(asked), len(asked) - 1, 0) for peer in peers}

    monkeypatch.setattr("edge.head.ways.tcp_facts", tcp_facts)
    monkeypatch.setattr(SegmentLink, "peers", {("10.0.0.1", 7002)})
    await ways._listen()
    await ways._listen()
    assert asked == [{("10.0.0.1", 7002)}] * 2
    assert ways._estimator is not None
    assert ways._estimator.facts().loss == pytest.approx(0.1)
