"""What `mkdocs build` needs beside its configuration: Triton interpreted, links that fences print,
and no page that failed.

Several pages run kernels, and Triton reads TRITON_INTERPRET when it is first imported, by whichever
page comes first. A fence that fails would leave its traceback in the page, and the build would say
nothing. Nor does it look at the links in what a fence prints, which still lead to Markdown.
"""

import os
import re
from posixpath import dirname, join, normpath

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

os.environ.setdefault("TRITON_INTERPRET", "1")

_TO_MARKDOWN = re.compile(r'href="(?!\w+:)([^"#]+\.md)(?=["#])')


def on_page_content(html: str, page: Page, files: Files, **_: object) -> str:
    """The page with each link to a source led to the page that is made from it.

    Raises:
        PluginError: a traceback stands in the page, or a link to a source that is not there; the
            build ends.
    """
    source = page.file.src_uri
    if "Traceback (most recent call last)" in html:
        raise PluginError(f"{source}: an example failed, and its traceback is the page")

    def led(link: re.Match[str]) -> str:
        target = files.get_file_from_path(normpath(join(dirname(source), link[1])))
        if target is None:
            raise PluginError(f"{source}: a fence prints a link to {link[1]}, which is not there")
        return f'href="{target.url_relative_to(page.file)}'

    return _TO_MARKDOWN.sub(led, html)
