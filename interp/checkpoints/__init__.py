"""From what `--model` names to an open model: find its files, load them, apply adapters, and record what was opened."""
