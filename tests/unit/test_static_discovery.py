"""What only the static table has: its text form, its entries; and what an instance may be."""

from __future__ import annotations

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.discovery import Instance, join_address, split_address
from splitmesh.kernel.discovery_static import StaticDiscovery, parse_static


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("", {}),
        ("  ", {}),
        ("registry=127.0.0.1:7001", {"registry": ("127.0.0.1:7001",)}),
        (
            " registry = a:1 , router=h:1 ; h2:2 ,tail=[::1]:9",
            {"registry": ("a:1",), "router": ("h:1", "h2:2"), "tail": ("[::1]:9",)},
        ),
    ],
)
def test_a_table_is_read_from_its_text(text: str, table: dict[str, tuple[str, ...]]) -> None:
    assert parse_static(text) == table


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("registry", "'registry' is not service=host:port"),
        ("registry=a:1,", "'' is not service=host:port"),
        ("Registry=a:1", "'Registry' is not a lower-case name"),
        ("registry=", "'' is not host:port"),
        ("registry=a:1;", "'' is not host:port"),
        ("registry=7001", "'7001' is not host:port"),
        ("registry=a:0", "has no port between 1 and 65535"),
        ("registry=a:65536", "has no port between 1 and 65535"),
        ("registry=a:²", "has no port between 1 and 65535"),
        ("registry=a b:1", "'a b:1' is not host:port"),
        ("registry=::1:7001", "'::1:7001' is not host:port"),
        ("registry=a:1,registry=b:1", "'registry' is listed twice"),
        ("registry=a:1;a:1", "'registry' has the same address twice"),
    ],
)
def test_a_wrong_table_is_refused_with_the_entry_that_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(MeshError) as caught:
        parse_static(text, "discovery_addresses")
    assert caught.value.reason is Reason.FIELD_INVALID
    assert problem in caught.value.message
    assert [field for field, _ in caught.value.fields] == ["discovery_addresses"]


async def test_the_table_is_resolved_with_addresses_as_ids() -> None:
    discovery = StaticDiscovery({"tail": ["h2:2", "h1:1"]})
    assert await discovery.resolve("tail") == (Instance("tail", "h1:1", "h1:1"), Instance("tail", "h2:2", "h2:2"))


async def test_a_registration_stands_beside_the_table_and_can_replace_an_entry_for_a_while() -> None:
    discovery = StaticDiscovery({"tail": ["h1:1"]})
    own = await discovery.register(Instance("tail", "own", "h3:3"))
    better = await discovery.register(Instance("tail", "h1:1", "h1:1", tags=("gpu",)))
    assert await discovery.resolve("tail") == (better.instance, own.instance)
    await better.deregister()
    assert await discovery.resolve("tail") == (Instance("tail", "h1:1", "h1:1"), own.instance)


@pytest.mark.parametrize("address", ["h:1", "10.0.0.1:65535", "[fe80::1]:7001", "tail-0.plant_7.example:7001"])
def test_an_address_survives_being_split_and_joined(address: str) -> None:
    assert join_address(*split_address(address)) == address


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"service": "Tail"}, "service"),
        ({"service": "t" * 49}, "service"),
        ({"instance_id": "a/b"}, "instance_id"),
        ({"instance_id": ""}, "instance_id"),
        ({"address": "h"}, "address"),
        ({"tags": ("",)}, "tags"),
        ({"tags": ("a\nb",)}, "tags"),
        ({"tags": ("a",) * 65}, "tags"),
        ({"metadata": {"a b": "c"}}, "metadata"),
        ({"metadata": {"a": "c" * 513}}, "metadata"),
        ({"metadata": {str(number): "" for number in range(65)}}, "metadata"),
    ],
)
def test_an_instance_no_catalogue_could_keep_is_refused(changes: dict[str, object], field: str) -> None:
    whole = {"service": "tail", "instance_id": "a", "address": "h:1", "tags": ("gpu",), "metadata": {"site": ""}}
    Instance(**whole)  # type: ignore[arg-type]
    with pytest.raises(MeshError) as caught:
        Instance(**(whole | changes))  # type: ignore[arg-type]
    assert [name for name, _ in caught.value.fields] == [field]


def test_an_instance_is_hashable_and_does_not_change_with_what_made_it() -> None:
    metadata = {"site": "plant-7"}
    instance = Instance("tail", "a", "h:1", metadata=metadata)
    metadata["site"] = "elsewhere"
    assert instance.metadata == {"site": "plant-7"}
    assert len({instance, Instance("tail", "a", "h:1", metadata={"site": "plant-7"})}) == 1
