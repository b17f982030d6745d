"""Spaces before punctuation, in a text and in its pieces."""

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from diy_core.text.clean_up import CleanUpStream, clean_up

TEXT = st.text(alphabet=" .?!,'ntmsvreab\n", max_size=40)


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_equals_transformers(text):
    assert clean_up(text) == PreTrainedTokenizerBase.clean_up_tokenization(None, text)


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(TEXT, max_size=8))
def test_pieces_join_to_the_whole(pieces):
    stream = CleanUpStream()
    assert "".join([*map(stream.push, pieces), stream.finish()]) == clean_up("".join(pieces))


def test_a_piece_comes_as_soon_as_nothing_can_change_it():
    stream = CleanUpStream()
    assert [stream.push(piece) for piece in ("go", " it", " 's", " a")] == ["go", " i", "", "t's a"]
    assert (stream.push(" ."), stream.finish()) == ("", ".")
