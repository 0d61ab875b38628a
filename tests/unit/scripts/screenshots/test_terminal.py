from xml.etree import ElementTree

from scripts.screenshots.terminal import render_terminal, size_of


def test_a_terminal_shows_the_command_and_its_output_without_escape_sequences() -> None:
    svg = render_terminal("megaponder doctor", "\x1b[32mok\x1b[0m  <found> & so on\n")
    shown = "".join(ElementTree.fromstring(svg).itertext()).replace("\N{NO-BREAK SPACE}", " ")
    assert "$ megaponder doctor" in shown
    assert "ok" in shown
    assert "<found> & so on" in shown
    assert "[32m" not in shown
    assert "url(" not in shown


def test_a_terminal_is_as_high_as_its_lines() -> None:
    widths, heights = zip(
        *(size_of(render_terminal("megaponder doctor", "line\n" * lines)) for lines in (1, 9)), strict=True
    )
    assert widths[0] == widths[1] > 800
    assert heights[1] > heights[0] > 50
