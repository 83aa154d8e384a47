"""The commands of the project, a package each: `python -m analyses.heads`, `shifts`, `examples` and `grades`."""
