"""The site of these pages, for Sphinx; `launch/docs.sh` builds it.

Its sources are the Markdown files of the repository where they lie, so nothing is written twice.
"""

# The order in which a newcomer reads; the README comes before all.
NAVIGATION = {
    "Begin": ("docs/python", "docs/methods", "docs/models"),
    "Tasks and their data": (
        "docs/photos",
        "docs/transforms",
        "docs/dense",
        "docs/detection",
        "docs/dense_data",
        "docs/multitask",
        "docs/points",
        "docs/clouds_data",
    ),
    "Compare": ("docs/sweeps", "docs/offline", "docs/vtab", "docs/figures"),
    "Run": ("docs/logging", "docs/launch", "docs/performance"),
    "Hand on": ("docs/handing_on", "docs/serving"),
    "Shipped weights": ("dynadapt/assets/vit_mini", "dynadapt/assets/point_mini"),
    "Take part": (
        "CONTRIBUTING",
        "docs/add_a_method",
        "docs/add_a_task",
        "CHANGELOG",
        "SECURITY",
    ),
}

project = "dynadapt"
copyright = "the dynadapt authors, Apache-2.0"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = [f"{page}.md" for page in (root_doc, *sum(NAVIGATION.values(), ()))]
exclude_patterns = [".*", "build", "runs", "tests"]  # not looked through

myst_heading_anchors = 6  # as GitHub names them, so that links hold in both places
highlight_language = "none"
smartquotes = False  # commands stay as they are typed

html_theme = "furo"
html_title = "dynadapt"
html_copy_source = False
html_show_sphinx = False
html_use_index = False


def add_navigation(app, page, source):
    """Gives the README the contents that the sidebar shows."""
    if page == root_doc:
        for caption, pages in NAVIGATION.items():
            listed = "\n".join(f"/{page}" for page in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def setup(app):
    app.connect("source-read", add_navigation)
