"""Tables to pictures: the figures and the page of one head run. Imports `interp.tables.schema` only, and never torch.

`figures.run.catalog.FIGURES` names every figure, `figures.run.draw.draw_run` draws a run folder, and
`python -m figures RUN_FOLDER` does the same from a shell.
"""
