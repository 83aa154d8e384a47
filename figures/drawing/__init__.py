"""What every figure shares: styles, text, layout, colors, lines, and the entry that a catalog holds for each figure."""
