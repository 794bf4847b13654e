"""Damaged, strange and hostile inputs for every reader: what is not understood is refused or named, nothing falls over.

    python -m unproject.scripts.fuzz [--cases N] [--only WORD ...] [--seed S] [--jobs J] [--out FOLDER]
    python -m unproject.scripts.fuzz --again FILE ...

A case is a file: a valid one that was changed (`mutations`), one that hypothesis wrote from a grammar (`grammars`), or
a valid one with something unknown in it that has to be refused or named (`planted`). `judge` says what is wrong with
what a reader made of it. Cases follow from the seed and their number alone, whatever ran before them.
"""
