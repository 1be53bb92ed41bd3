"""Sphinx configuration."""

import os

import lightning_bsscale

project = "lightning-bsscale"
copyright = "the lightning-bsscale contributors"
author = "the lightning-bsscale contributors"
release = version = lightning_bsscale.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project
autoclass_content = "both"  # the constructor documents the options
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
# Otherwise lines break anywhere within type unions.
python_maximum_signature_line_length = 100

# Inventories come from the network, and a failed fetch is a warning, so an error here: fetch them only on request.
if os.environ.get("DOCS_ONLINE") or os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
        "torchmetrics": ("https://lightning.ai/docs/torchmetrics/stable", None),
    }
