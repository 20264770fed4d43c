"""One page about one run: what there was, what is left, why, and how good it is.

`spa.report.run` finds the files, `spa.report.gather` makes plain data of them (the JSON twin), `spa.report.page` draws it.
"""
