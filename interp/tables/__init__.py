"""Everything that is stored: table schemas, atomic files, results folders, names of earlier versions, and the errors of the project.

Nothing here imports torch.
"""
