from pathlib import Path
from xml.etree import ElementTree

from scripts.screenshots.terminal import render_terminal


def test_a_terminal_shows_the_command_and_its_output_without_escape_sequences(tmp_path: Path) -> None:
    file = tmp_path / "terminal.svg"
    render_terminal("megaponder doctor", "\x1b[32mok\x1b[0m  <found> & so on\n", file)
    shown = "".join(ElementTree.fromstring(file.read_text()).itertext()).replace("\N{NO-BREAK SPACE}", " ")
    assert "$ megaponder doctor" in shown
    assert "ok" in shown
    assert "<found> & so on" in shown
    assert "[32m" not in shown
