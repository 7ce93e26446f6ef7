"""Text in a table that a spreadsheet may open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitmesh.compress.cells import quoted, unquoted


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "-"])
def test_what_a_spreadsheet_would_compute_has_an_apostrophe_before_it(text: str) -> None:
    assert quoted(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "good", "a=b", "'", "'s", " =1", "1-2", "é"])
def test_other_text_is_left_as_it_is(text: str) -> None:
    assert quoted(text) == unquoted(text) == text


@given(st.text(st.sampled_from("'=+-@\t\ra "), max_size=5))
def test_what_was_written_is_read(text: str) -> None:
    assert unquoted(quoted(text)) == text
    assert quoted(text)[:1] not in ("=", "+", "-", "@", "\t", "\r") or not text
