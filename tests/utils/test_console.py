"""What the terminal shows of names that may hold anything."""

from longtail.utils.console import printable


def test_control_characters_are_visible():
    assert printable("a\x1b[2J\u202egnp.exe\u2066\udcff\nb é א") == "a\\x1b[2J\\u202egnp.exe\\u2066\\udcff\nb é א"
