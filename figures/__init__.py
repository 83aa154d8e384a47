"""Tables to pictures: the figures and the page of one head run. Imports `interp.table` only, and never torch.

`figures.catalog.FIGURES` names every figure, `figures.run_folder.draw_run` draws a run folder, and
`python -m figures RUN_FOLDER` does the same from a shell.
"""
