"""
``tools/tune.py``: a search for a method's settings.

    run.py       the command
    spaces.py    what is searched of each method
    search.py    which settings are tried next; numbers only
    held_out.py  the images they are chosen on
    results.py   what has been found so far
"""
