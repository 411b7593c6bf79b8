"""From result folders to distributions, tables, plots and a report. Reads files only, never simulator objects."""
