"""TensorBoard in a real Chromium: charts have the curves of their titles, and curves their descriptions."""

import pytest

from scripts.screenshots.browser import find_chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium (apt install chromium)"),
]
