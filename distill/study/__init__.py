"""Studies: settings, conditions, the steps of a run, and tables of results."""
