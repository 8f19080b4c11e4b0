"""Every fatal error can be told apart by its exit code and says what to do."""

import pytest

from hottune import errors
from hottune.errors import HottuneError, all_errors

RESERVED = {0: "done", 1: "a bug", 2: "wrong usage", 130: "interrupted"}


def test_no_two_errors_share_an_exit_code():
    codes = [error.exit_code for error in all_errors()]
    assert len(codes) == len(set(codes))


def test_every_error_class_of_the_module_is_listed():
    defined = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, HottuneError) and value is not HottuneError
    }
    assert defined == set(all_errors())
    assert len(defined) > 20


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.__name__)
def test_an_error_has_its_own_code_and_a_sentence_that_explains_it(error):
    assert error.exit_code not in RESERVED
    assert 10 <= error.exit_code < 126  # shells use 126 and up themselves
    assert "exit_code" in vars(error), "inherits its code from another error"
    assert error.__doc__.strip().endswith(".")


def test_errors_are_listed_in_the_order_of_their_codes():
    codes = [error.exit_code for error in all_errors()]
    assert codes == sorted(codes)


def test_the_message_joins_what_happened_why_and_the_next_step():
    error = HottuneError("It broke.", "It was old.", "Buy a new one.")
    assert str(error) == "It broke. It was old. Buy a new one."
    assert (error.what, error.why, error.next_step) == ("It broke.", "It was old.", "Buy a new one.")


def test_a_message_without_a_cause_has_no_gap():
    assert str(HottuneError("It broke.", next_step="Try again.")) == "It broke. Try again."
