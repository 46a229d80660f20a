"""The HTML pages: the report of a run, and the comparison of several runs. Each is one file that needs no network."""
