"""Reads an HTML page as a browser does."""

from html.parser import HTMLParser


class PageReader(HTMLParser):
    """Its tags, ids, links and text. AssertionError on an attribute that would run code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.ids, self.links, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs), attrs
        self.ids += [value for name, value in attrs if name == "id"]
        links = ("src", "href", "srcset", "xlink:href")
        self.links += [str(value) for name, value in attrs if name in links]

    def handle_data(self, data: str) -> None:
        self.text += data
