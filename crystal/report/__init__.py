"""A run directory, told as one page: `report/index.html` and the same in Markdown.

Reads the run's files only (no torch, no data, no clock), so the same directory gives the same report, byte for byte,
and a run that was killed or is still going gives the part of the report that its files can carry.

    read           the files, as typed dataclasses (metrics: metrics.jsonl; fields: checked values)
    facts, scores  what the page says about them: sentences and tables, each number from a file
    figures        the plots, drawn with axes
    write          the templates, filled and written
"""
