"""Settings of Sphinx for this site: ``make docs`` builds it, without network."""

import softcft

project = "softcft"
author = "The softcft contributors"
version = release = softcft.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
exclude_patterns = ["_build"]

add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_default_options = {"members": True, "exclude-members": "__init__"}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings tell shapes and units, which types do not
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True

# Others' classes. Their sites would be asked for over the network.
nitpick_ignore_regex = [
    ("py:.*", r"(accelerate|collections|datasets|numpy|pandas|pathlib|PIL|re|sklearn|torch)(\..*)?")
]

html_theme = "furo"
html_title = "softcft"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
