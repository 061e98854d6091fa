"""
What would serve any Detectron2 project: checkpoints, safe files, the loader, the training step,
preemption, resuming and the record of a run. Nothing in here knows of distillation, and nothing
imports from the package's other rooms.

    run_folder.py       RunFolder: one run at a time in a folder, resumed as itself
    record.py           what a run was made of: runs.jsonl
    lock.py             keeps other processes out of a folder
    step.py             the training step: accumulation, skipped batches, out of memory
    loader.py           batches that go on where they were after a resume
    unlabelled.py       images without labels behind those with labels in a batch
    reproducible.py     the same random numbers, interrupted or not
    plain_numbers.py    numbers a model keeps in plain attributes, in checkpoints
    preemption.py       signals: a checkpoint, then exit code 75
    unwrap.py           the model inside a data-parallel wrapper
    memory.py           peak memory among the metrics

    checkpoint.py       SafeCheckpointer: whole files, safe reading, resume
    optimizer_state.py  whether an optimizer's state fits
    weights_file.py     what a file of weights has to hold
    torch_files.py      .pth files, read without running them
    pickle_files.py     .pkl files, read without running them
    file_kinds.py       what else a file may be, by its first bytes
    trust.py            files that may run code, and the errors of the others
    downloads.py        URLs, and where they are kept
    whole_files.py      files that appear whole or not at all

    user_errors.py      errors without a traceback, exit code 2
    words.py            what the user calls a setting, for errors
    interrupt.py        Ctrl-C while torch is imported
    lost_output.py      a terminal or pipe that is gone
"""
