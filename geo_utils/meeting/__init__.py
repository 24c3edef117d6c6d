"""Notebook 05: from finished runs to the index, the comparison and the week's deck."""
