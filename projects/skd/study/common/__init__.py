"""
What several commands use.

    bench_table.py   what tools/benchmark.py measured
    command.py       arguments, help and errors of a command
    devices.py       GPUs and cores, shared between runs
    methods.py       the methods that a flag names
    metrics.py       what metrics.json says
    models.py        trained models, as ``--model NAME CONFIG WEIGHTS`` names them
    paired.py        two sides of a study, seed by seed
    paths.py         files that come with the project
    pictures.py      predictions, attention and curves of finished runs
    progress.py      the display while runs are at work
    result_files.py  JSON and text, written whole
    result_plots.py  plots of committed results
    runs.py          trainings side by side, each a process of train_net
    statistics.py    means with confidence intervals
    tables.py        tables in a terminal and in Markdown
    trial.py         a run that is looked at for a few iterations
"""
