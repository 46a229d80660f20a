"""Compare runs with the same test images on one HTML page.

The page has accuracies and costs, the difference of each pair of runs with McNemar's exact test, and the differences by
class. The runs are not evaluated again if this version evaluated them.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("folders", metavar="RUN", nargs="+", help="run folders, two or more")
    parser.add_argument("--output", metavar="FILE", default="compare.html", help="page (default: compare.html)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    import webbrowser

    from longtail import api

    page = api.compare(arguments.folders, arguments.output)
    if arguments.open:
        webbrowser.open(page.resolve().as_uri())
