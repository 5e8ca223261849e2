"""How numbers look in the text of the website."""

import sys
from pathlib import Path

import pytest
from docutils import nodes

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("_ext", "tools")]

import mlm_site

SPACE = "\N{NO-BREAK SPACE}"


def typeset(*children):
    paragraph = nodes.paragraph("", "", *children)
    mlm_site.typeset(None, paragraph, "page")
    return paragraph.astext()


@pytest.mark.parametrize(
    ("inserted", "shown"),
    [
        ("-0.52", "\N{MINUS SIGN}0.52"),
        ("-3", "\N{MINUS SIGN}3"),
        ("-0.00", "0.00"),
        ("-0.01", "\N{MINUS SIGN}0.01"),
        ("0.5", "0.5"),
        ("2026-11-27", "2026-11-27"),
        ("-0.5-1", "-0.5-1"),
    ],
)
def test_an_inserted_number_has_a_minus_and_no_negative_zero(inserted, shown):
    assert typeset(nodes.inline("", inserted, classes=["pasted-text"])) == shown


def test_a_percent_sign_stays_with_its_number():
    inserted = nodes.inline("", "90", classes=["pasted-text"])
    shown = typeset(inserted, nodes.Text(" % of 5 % and percent"))
    assert shown == f"90{SPACE}% of 5{SPACE}% and percent"


def test_code_stays_as_it_is():
    assert typeset(nodes.literal("", "5 % 3"), nodes.raw("", "-1 %", format="html")) == "5 % 3-1 %"


def test_a_footnote_stays_with_the_word_before_it():
    note = nodes.footnote_reference("", "1")
    assert typeset(nodes.Text("as Stein said "), note) == f"as Stein said{SPACE}1"
    assert typeset(nodes.footnote_reference("", "1"), nodes.Text(" is first ")) == "1 is first "


def test_a_link_does_not_begin_with_a_space():
    link = nodes.reference("", "", nodes.inline("", " Exercise 1"))
    assert typeset(nodes.Text("Solution to"), link) == "Solution to Exercise 1"
    assert link.astext() == "Exercise 1"
