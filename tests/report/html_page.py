"""A page, parsed."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr"}
INLINE = {"b", "code", "i", "small"}
WORDS = ("src", "href", "srcset", "data", "action", "poster", "xlink:href")


class Page(HTMLParser):
    """Checks that elements are closed, and collects what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self._section = "head"
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {k: v or "" for k, v in attrs}
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag not in INLINE:  # stands apart from what is before it
            self.sections[self._section] = self.sections.get(self._section, "") + " "
        if tag == "section":
            self._section = values["id"]
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if self.open and self.open[-1] in ("td", "th", "code") and "tr" in self.open:
            self.tables[-1][-1][-1] += data

    def addresses(self) -> list[str]:
        """All that a browser might fetch."""
        return [values[word] for _, values in self.tags for word in WORDS if word in values]

    def words(self, section: str) -> str:
        return " ".join(self.sections[section].split())

    def table(self, first_heading: str, *headings: str) -> list[list[str]]:
        """Rows of the table that begins with these headings."""
        wanted = [first_heading, *headings]
        found = [t for t in self.tables if t and t[0][: len(wanted)] == wanted]
        assert found, f"no table {wanted} among {[t[0] for t in self.tables if t]}"
        return found[0][1:]
