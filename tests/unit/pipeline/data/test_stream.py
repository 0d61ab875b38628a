import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.stream import ArrayStream, JoinedStream


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6), data=st.data())
def test_joined_streams_are_one_array(lengths: list[int], data: st.DataObject) -> None:
    whole = np.arange(sum(lengths))
    parts = np.split(whole, np.cumsum(lengths)[:-1])
    stream = JoinedStream([ArrayStream(part) for part in parts])
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    found = np.empty(stop - start, dtype=np.int64)
    stream.read_into(found, start)
    destination = np.full((2, len(whole)), -1)
    stream.read_rows(destination, np.array([start, 0]), np.array([stop - start, 1 if len(whole) else 0]))
    assert destination[0].tolist() == whole[start:stop].tolist() + [-1] * (len(whole) - stop + start)
    assert destination[1, :1].tolist() == whole[:1].tolist()
    assert len(stream) == len(whole)
    assert found.tolist() == whole[start:stop].tolist()
    assert [token for run in stream.runs() for token in run] == whole.tolist()
