"""A whole run, from images to the report: its plan, how long it takes, and its steps side by side."""
