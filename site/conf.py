"""Sphinx's settings for the series as a book; ``python site/book.py`` builds it."""

import os

repository = os.environ["BOOK_REPOSITORY"]  # OWNER/NAME and branch, from pyproject.toml
branch = os.environ["BOOK_BRANCH"]

project = "MNIST under 20,000 parameters"
author = "the authors of the series"
copyright = "MIT licence"
html_title = project
extensions = ["myst_nb"]
nb_execution_mode = "off"  # the committed outputs are shown; nothing is executed
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["book.css"]
html_show_sphinx = False
html_theme_options = {
    "repository_url": f"https://github.com/{repository}",
    "repository_branch": branch,
    "path_to_docs": "",
    "navbar_persistent": [],
    "use_repository_button": True,
    "use_download_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
}
