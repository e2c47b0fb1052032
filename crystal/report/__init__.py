"""A run directory told as one page, `report/index.html`, and the same in Markdown; several checkpoints' scores likewise.

Reads the run's files only (no torch, no data, no clock), so the same directory gives the same report, byte for byte,
and a run that was killed or is still going gives the part of the report that its files can carry.

    read            the files, as typed dataclasses (metrics: metrics.jsonl; scorefile: scores; fields: checked values)
    facts, samples  what the page says about them: sentences and tables, each number from a file
    scores          the same about scores, with compare (paired, with its statistics) and published (other people's)
    figures         the plots, drawn with axes
    render          the templates, filled and written
    write           the report of a run;  checkpoints: that of several checkpoints
"""
