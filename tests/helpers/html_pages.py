"""Reads HTML pages for tests."""

import shutil
from html.parser import HTMLParser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


class Page(HTMLParser):
    """The elements of a page: their tags and attributes, tables by caption, and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.text = [], {}, ""
        self._captions, self._rows, self._open = "", None, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass
        if tag == "table":
            self.tables[" ".join(self._caption.split())] = [
                [" ".join(cell.split()) for cell in row] for row in self._rows
            ]
            self._rows = None

    def handle_data(self, data):
        if not {"style", "script"} & set(self._open[-1:]):
            self.text += data
            if "caption" in self._open:
                self._caption += data
            elif self._rows and self._rows[-1]:
                self._rows[-1][-1] += data

    def attributes(self, tag):
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def launch(playwright):
    """Starts Chromium."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


def open_page(browser, path, **options):
    """Opens a page; also returns lists of its messages and of its requests, which grow."""
    page = browser.new_page(**options)
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.resolve().as_uri())
    return page, messages, requests
