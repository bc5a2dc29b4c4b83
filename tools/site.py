"""What `mkdocs build` needs beside its configuration: Triton interpreted, and no page that failed.

Several pages run kernels, and Triton reads TRITON_INTERPRET when it is first imported, by whichever
page comes first. A fence that fails would leave its traceback in the page, and the build would say
nothing.
"""

import os

from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

os.environ.setdefault("TRITON_INTERPRET", "1")


def on_page_content(html: str, page: Page, **_: object) -> str:
    """The page as it is, unless an example in it failed.

    Raises:
        PluginError: a traceback stands in the page; the build ends.
    """
    if "Traceback (most recent call last)" in html:
        raise PluginError(f"{page.file.src_uri}: an example failed, and its traceback is the page")
    return html
