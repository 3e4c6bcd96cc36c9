"""Whatever was done to an expanded model before: what keeps it keeps it, and what shows its base shows its base."""

import pytest

from tests.helpers.any_order import failures


@pytest.mark.slow  # many more: python -m tests.helpers.any_order 500
def test_no_order_of_operations_changes_what_an_operation_promises() -> None:
    assert [text for text, _ in failures(range(12), steps=8) if text] == []
