import base64
import gzip
import json
import math

import numpy as np
import pytest

from mp_plugin.report.embed import packed, packed_data

EDGES = [0.0, -0.0, 1.0, -2.5, 1e-45, 1.1754944e-38, 65504.0, 3.4028235e38, math.inf, -math.inf, math.nan]


def unpacked(text):
    """The same in Python as `unpackData` does in a browser."""
    content = gzip.decompress(base64.b64decode(text))
    length = int(content[:8])
    values = json.loads(content[8 : 8 + length])
    offset, arrays = 8 + length, {}
    for each in values.pop("arrays"):
        size = 4 * each["length"]
        planes = np.frombuffer(content[offset : offset + size], "u1").reshape(4, -1)
        arrays[each["name"]] = np.ascontiguousarray(planes[::-1].T).view("<f4").reshape(-1)
        offset += size
    assert offset == len(content)
    return values, arrays


def test_values_and_arrays_come_back():
    numbers = np.random.default_rng(0).normal(size=1000) * 2.0 ** np.random.default_rng(1).integers(-60, 60, 1000)
    values, arrays = unpacked(packed_data({"name": "</script>"}, {"a": numbers.reshape(10, 100), "b": np.zeros(0)}))
    assert values == {"name": "</script>"}
    assert arrays["a"] == pytest.approx(numbers, rel=2**-13)
    assert len(arrays["b"]) == 0


def test_the_edges_stay_what_they_are():
    _, arrays = unpacked(packed_data({}, {"edges": np.array(EDGES)}))
    found = arrays["edges"].tolist()
    assert found[4] == pytest.approx(0.0, abs=1e-41)
    assert found[7] == pytest.approx(3.4028235e38, rel=2**-12)
    assert math.isfinite(found[7])
    exact = [place for place in range(len(EDGES)) if place not in (4, 7)]
    assert [found[place] for place in exact] == pytest.approx([EDGES[place] for place in exact], nan_ok=True, rel=1e-4)


def test_what_fp32_cannot_hold_is_infinite():
    _, arrays = unpacked(packed_data({}, {"large": np.array([1e300, -1e300])}))
    assert arrays["large"].tolist() == [math.inf, -math.inf]


def test_the_same_content_makes_the_same_text():
    assert packed(b"content" * 100) == packed(b"content" * 100)
    assert gzip.decompress(base64.b64decode(packed(b"content"))) == b"content"
