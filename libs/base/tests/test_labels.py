from __future__ import annotations

import pytest
from shoal_base.labels import ANY, check_labels, parse_selector


@pytest.mark.parametrize(
    ("condition", "with_a", "with_c", "without"),
    [
        ("a", True, False, False),
        ("!a", False, True, True),
        ("in(a,b)", True, False, False),
        ("in( a , b )", True, False, False),
        ("!in(a,b)", False, True, True),
        ("exists()", True, True, False),
        ("!exists()", False, False, True),
    ],
)
def test_each_condition_holds_where_it_says(condition: str, with_a: bool, with_c: bool, without: bool) -> None:
    selector = parse_selector({"k": condition})
    assert (selector.matches({"k": "a"}), selector.matches({"k": "c"}), selector.matches({})) == (with_a, with_c, without)


def test_all_conditions_must_hold() -> None:
    selector = parse_selector({"zone": "eu", "shoal.io/spot": "!true"})
    assert selector.matches({"zone": "eu"})
    assert not selector.matches({"zone": "eu", "shoal.io/spot": "true"})
    assert str(selector) == "zone=eu, shoal.io/spot=!true"


def test_no_selector_matches_everything() -> None:
    assert not parse_selector(None)
    assert parse_selector({}).matches({})
    assert ANY.matches({"a": "b"})


@pytest.mark.parametrize("text", ["", "!", "in()", "in(a,,b)", "exists(x)", "a b", "!!a", "in(a", "x" * 64])
def test_a_condition_that_is_none_is_refused_with_key_and_text(text: str) -> None:
    with pytest.raises(ValueError, match="'zone'") as caught:
        parse_selector({"zone": text})
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("key", ["", "a b", "/x", "-x", "x" * 64])
def test_a_key_that_no_label_can_have_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="label"):
        parse_selector({key: "a"})
    with pytest.raises(ValueError, match="label"):
        check_labels({key: "a"})


def test_labels_are_checked() -> None:
    assert check_labels({"shoal.io/zone": "eu-1", "empty": ""}) == {"shoal.io/zone": "eu-1", "empty": ""}
    with pytest.raises(ValueError, match="zone='a b'"):
        check_labels({"zone": "a b"})
