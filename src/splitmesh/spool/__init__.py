"""What a host notes while nobody can be told: on its disk, in order, bounded, until somebody has it.

``values.py`` says what is noted and what became of it, ``store.py`` keeps it in one SQLite file, ``damaged.py`` saves what
can be saved of a file that the disk has changed, ``spool.py`` is what others use: it never blocks and never raises into
whoever notes something."""
