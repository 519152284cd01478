"""The run report: figures, tables and one self-contained page; it takes plain data only.

`metrics` reads what a run wrote down, `figures` and `pictures` draw PNGs, `tables` lays out tables
for terminals and Markdown, `page` puts it all into one HTML file that works offline.
"""
