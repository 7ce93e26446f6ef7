"""What users build on stays: the SDK's names and signatures, the reasons of errors and the messages on the wire."""

from tools.public_surface import SNAPSHOT, surface

HOW = (
    "To add to it, or to break it on purpose (with a line in CHANGELOG.md that says so): "
    "python tools/public_surface.py --write, and commit the file."
)


def difference(agreed: list[str], found: list[str]) -> str:
    """What users would notice, line by line; empty for nothing."""
    gone = [f"- {line}" for line in agreed if line not in found]
    new = [f"+ {line}" for line in found if line not in agreed]
    if not gone and not new:
        return ""
    what = "Something users build on is gone or has changed." if gone else "Something new is not agreed on yet."
    return "\n".join([f"{what} {HOW}", *gone, *new])


def test_what_users_build_on_is_what_was_agreed() -> None:
    found = difference(SNAPSHOT.read_text().splitlines(), surface())
    assert not found, found


def test_a_line_that_goes_or_changes_is_told_from_a_new_one() -> None:
    assert difference(["a: int", "b: int"], ["a: int", "b: int"]) == ""
    assert "is gone or has changed" in difference(["a: int"], ["a: str"])
    assert difference(["a: int"], ["a: str"]).endswith("- a: int\n+ a: str")
    assert "not agreed on yet" in difference(["a: int"], ["a: int", "b: int"])


def test_the_surface_covers_calls_fields_reasons_and_messages() -> None:
    text = "\n".join(surface())
    for line in (
        "async Mesh.infer(frame: Frame | Path,",
        "SyncStream.__iter__()",
        "Answer.answered_by: AnsweredBy",
        "Reason.FRAME_SUPERSEDED",
        "splitmesh.api.inference.v1.InferRequest 4 image: optional bytes",
        "splitmesh.api.segment.v1.RunRequest",
        "splitmesh.api.tensor.v1.DataType 1 DATA_TYPE_",
        "Order = 'as-ready' | 'in-order'",
    ):
        assert line in text
