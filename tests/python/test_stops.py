"""Stop strings: found over any cut of the text, and nothing held back for longer than needed."""

import itertools
import random

import pytest

from flash_moe import errors
from flash_moe.stops import StopMatcher


def run(stops, pieces):
    matcher = StopMatcher(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return "".join(shown) + matcher.finish(), matcher.stopped


def cuts(text):
    """Every way to cut a text into pieces."""
    for marks in itertools.product((False, True), repeat=len(text) - 1):
        piece = text[0]
        pieces = []
        for character, cut in zip(text[1:], marks, strict=True):
            if cut:
                pieces.append(piece)
                piece = ""
            piece += character
        yield [*pieces, piece]


@pytest.mark.parametrize(
    ("stops", "text", "want"),
    [
        (["\n\n"], "a\nb\n\nc", "a\nb"),
        (["abc"], "ababcx", "ab"),
        (["aab"], "aaaab", "aa"),
        (["b", "abc"], "xabcd", "xa"),
        (["abcd", "bc"], "xabcd", "x"),
        (["ab", "abab"], "zabab", "z"),
        (["END"], "EN ENDE", "EN "),
        (["x"], "abc", None),
        (["abc"], "aab", None),
        ([], "abc", None),
    ],
)
def test_a_stop_is_found_over_every_cut(stops, text, want):
    for pieces in cuts(text):
        shown, stopped = run(stops, pieces)
        # Cuts decide which of two overlapping stops completes first, never what stands before both.
        if want is None:
            assert (shown, stopped) == (text, False), pieces
        elif len(stops) == 1:
            assert (shown, stopped) == (want, True), pieces
        else:
            assert stopped, pieces
            assert text.startswith(shown), pieces
            assert not any(stop in shown for stop in stops), pieces


def test_only_a_possible_start_is_held_back():
    matcher = StopMatcher(["STOP"])
    assert matcher.push("go S") == "go "
    assert matcher.push("T") == ""
    assert matcher.push("A") == "STA"
    assert matcher.push("y") == "y"


def test_nothing_comes_after_a_stop():
    matcher = StopMatcher(["."])
    assert matcher.push("a.b") == "a"
    assert (matcher.push("c"), matcher.finish(), matcher.stopped) == ("", "", True)


def test_random_texts_agree_with_a_search_of_the_whole():
    rng = random.Random(1)
    for _ in range(500):
        text = "".join(rng.choice("ab") for _ in range(40))
        stop = "".join(rng.choice("ab") for _ in range(rng.randrange(1, 9)))
        pieces = []
        rest = text
        while rest:
            length = rng.randrange(1, 6)
            pieces.append(rest[:length])
            rest = rest[length:]
        place = text.find(stop)
        want = (text, False) if place < 0 else (text[:place], True)
        assert run([stop], pieces) == want


@pytest.mark.parametrize("stops", ["abc", [""], [None], ["a", ""]])
def test_what_is_no_stop_string_is_refused(stops):
    with pytest.raises(errors.ConfigError, match="stop"):
        StopMatcher(stops)
