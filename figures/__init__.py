"""Tables to pictures: figures and pages of every kind of results. Imports `interp.tables` only, and never torch.

Each room has a `catalog` of its figures and a `draw` that draws a folder; `python -m figures FOLDER` does the same from a shell.
"""
