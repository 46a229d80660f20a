"""What the terminal shows of names that may hold anything, and output that nobody reads."""

import subprocess
import sys

from longtail.utils.console import printable


def test_control_characters_are_visible():
    assert printable("a\x1b[2J\u202egnp.exe\u2066\udcff\nb é א") == "a\\x1b[2J\\u202egnp.exe\\u2066\\udcff\nb é א"


def test_a_reader_that_has_gone_is_no_error():
    """As in ``longtail recipes | true``."""
    command = [sys.executable, "-m", "longtail", "recipes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
