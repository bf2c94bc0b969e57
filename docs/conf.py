"""The site: `make docs`. It asks nothing of the network, neither when it is made nor when it is read."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sat_core

project = "sat-core"
copyright = "the authors of sat-core; MIT"
version = release = sat_core.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sat-core {version}"
html_favicon = "_static/mark.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ["attrs_block"]
myst_heading_anchors = 3

default_role = "code"
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_admonition_for_examples = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
nitpick_ignore_regex = [
    # What other projects document. Their inventories would have to be fetched, and the site is made without a network.
    (r"py:.*", r"(torch|nn|np|numpy|pydantic|pydantic_core|collections|pathlib)(\..*)?"),
    (r"py:class", r"(Tensor|Callable|Literal|Any|dict\[str|sat_core\.fields\.Frozen)"),
]


def _options(app, what, name, obj, options, signature, returns):
    """What a pydantic class takes, by name and default; its annotations hold whole validators."""
    if what != "class" or not hasattr(obj, "model_fields"):
        return None
    fields = obj.model_fields.items()
    return f"({', '.join(key if field.is_required() else f'{key}={field.default!r}' for key, field in fields)})", None


def setup(app) -> None:
    app.connect("autodoc-process-signature", _options)


nitpick_ignore = [("py:class", "sat_core.defenses._weighting.Weighted")]  # private: what two defenses share
