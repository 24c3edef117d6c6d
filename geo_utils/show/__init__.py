"""What is shown: figures, tables, the example view, reports, pages of runs."""
