"""
``tools/compare.py``: detectors x methods x teachers x seeds.

    run.py      the command
    design.py   a study file, and the runs it asks for
    schema.py   what a study file may hold
    earlier.py  results of an earlier call that stand for runs
    same.py     whether the runs were made of the same things
    results.py  tables of the runs that are finished
    report.py   the HTML report
    page.py     its template
"""
