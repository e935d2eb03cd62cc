"""How tests read the HTML pages of reports, and what a browser may load and run for them."""

import base64
import hashlib
import html.parser


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; complains about tags that are closed in the wrong order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.styles, self.policies, self._open = [], [], [], [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "meta" and dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policies.append((tuple(self.tags), dict(attrs)["content"]))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self._open and self._open[-1] == "style":
            self.styles.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def assert_closed(text):
    """A page loads nothing, runs nothing, and tells browsers to see to that, whatever names it was given."""
    page = Page(text)
    ((before, policy),) = page.policies
    # A policy holds for what comes after it.
    assert before == ("html", "head", "meta", "meta")
    (style,) = page.styles
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert {name: rest for name, _, rest in (part.strip().partition(" ") for part in policy.split(";"))} == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        # The policy would block styles and scripts in attributes, and with them how the page looks.
        assert name != "style" and not name.startswith("on")
        if name in ("src", "srcset", "href", "action"):
            assert value.startswith("data:image/" if tag == "img" else "#")
