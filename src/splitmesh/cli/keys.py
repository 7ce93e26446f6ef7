"""``splitmesh keys``: whose signatures count. Makes keys, and keyrings that root keys sign.

What a command does is in ``keys_work``, which is imported only when one is used: it needs a package that cameras do not.
"""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitmesh.cli.output import JsonOption, run, show_json, show_table

if TYPE_CHECKING:
    from splitmesh.trust.keyring import Keyring

app = typer.Typer(
    no_args_is_help=True,
    help="Whose signatures count: keys, and keyrings signed by root keys. SPLITMESH_TRUST_ROOT names the file of the roots.",
)

RootOption = Annotated[
    list[Path], typer.Option("--root", help="File of a root's private key; as often as the keyring needs roots.")
]
PinOption = Annotated[
    Path | None, typer.Option(help="Write the roots' public keys here: what SPLITMESH_TRUST_ROOT names everywhere.")
]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Name of the key, or the first digits of its id.")]


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; the public one goes beside it, with .pub.")],
    json: JsonOption = False,
) -> None:
    """Make a key. Nothing is overwritten; only you can read the private key."""

    async def work() -> tuple[str, Path]:
        from splitmesh.cli.keys_work import make_key

        return make_key(file)

    key_id, public = run(work())
    _say(json, {"key_id": key_id, "private": str(file), "public": str(public)}, f"key {key_id}\n{file}, {public}")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="Private or public, or several public ones.")], json: JsonOption = False
) -> None:
    """Say the ids of the keys in a file."""

    async def work() -> list[str]:
        from splitmesh.cli.keys_work import ids_in

        return ids_in(file)

    ids = run(work())
    _say(json, {"key_ids": ids}, "\n".join(ids))


@app.command()
def init(
    root: RootOption,
    threshold: Annotated[int, typer.Option(help="How many roots must sign each later keyring.")] = 1,
    pin: PinOption = None,
    json: JsonOption = False,
) -> None:
    """Make the registry's first keyring, without any key yet; all roots sign it.

    A registry that lost keyrings of these roots which this machine has seen gets them again in place of a first one.
    """

    async def work() -> Keyring:
        from splitmesh.cli.keys_work import begin

        return await begin(root, threshold, pin)

    _show(run(work()), json)


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """Show the newest keyring, verified from the pinned roots.

    A registry that lacks keyrings which this machine has seen, as after a restored backup, gets them again; so it does with
    every change.
    """

    async def work() -> Keyring:
        from splitmesh.cli.keys_work import newest

        return await newest()

    _show(run(work()), json)


@app.command()
def trust(
    name: Annotated[str, typer.Argument(help="Whose key it is, such as partitioner or press-shop.")],
    root: RootOption,
    public: Annotated[Path, typer.Option(help="File of the public key.")],
    models: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Models it may sign, such as 'solder*'; as often as needed. Without this and --datasets: everything.",
        ),
    ] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Datasets it may sign; none where only --models is given."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Trust a key from now on, or change what it may sign."""

    async def work() -> Keyring:
        from splitmesh.cli.keys_work import trust_key

        return await trust_key(root, name, public, models or [], datasets or [])

    _show(run(work()), json)


@app.command()
def retire(key: KeyArgument, root: RootOption, json: JsonOption = False) -> None:
    """Let a key sign nothing new; what it signed stays good."""

    async def work() -> Keyring:
        from splitmesh.cli.keys_work import end_key

        return await end_key(root, key, revoked=False, reason="")

    _show(run(work()), json)


@app.command()
def revoke(
    key: KeyArgument,
    root: RootOption,
    reason: Annotated[str, typer.Option(help="Why; everybody who is refused is told.")],
    json: JsonOption = False,
) -> None:
    """Let nothing that a key ever signed be loaded again; what is loaded goes on until it is replaced."""

    async def work() -> Keyring:
        from splitmesh.cli.keys_work import end_key

        return await end_key(root, key, revoked=True, reason=reason)

    _show(run(work()), json)


@app.command()
def rotate_root(
    root: RootOption,
    new_root: Annotated[
        list[Path], typer.Option("--new", help="Private key of each root from now on; an old one that stays too.")
    ],
    threshold: Annotated[int, typer.Option(help="How many of the new roots must sign each later keyring.")] = 1,
    pin: PinOption = None,
    json: JsonOption = False,
) -> None:
    """Replace the roots. Whoever pinned the old ones follows; pin the new ones where something is set up anew."""

    async def work() -> Keyring:
        from splitmesh.cli.keys_work import replace_roots

        return await replace_roots(root, new_root, threshold, pin)

    _show(run(work()), json)


def _say(json: bool, fields: object, text: str) -> None:
    if json:
        show_json(fields)
    else:
        print(text)


def _show(ring: Keyring, json: bool) -> None:
    if json:
        show_json(
            {
                **json_text.loads(ring.to_payload()),
                "root_ids": [root.key_id for root in ring.roots],
                "keys": [
                    {
                        "name": key.name, "key_id": key.key_id, "state": key.state, "models": list(key.models),
                        "datasets": list(key.datasets), "since": key.since, "until": key.until, "reason": key.reason,
                    }
                    for key in ring.keys
                ],
            }
        )  # fmt: skip
        return
    roots = ", ".join(root.key_id[:16] for root in ring.roots)
    rows = [
        (
            key.name,
            key.key_id[:16],
            key.state,
            key.may_sign,
            _day(key.since),
            _day(key.until),
            key.reason,
        )
        for key in ring.keys
    ]
    title = f"keyring {ring.version}; {ring.threshold} of {len(ring.roots)} roots sign the next: {roots}"
    show_table(title, ("key", "id", "state", "may sign", "since", "until", "reason"), rows)


def _day(time: object) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M}"
