"""One experiment per claim; each writes JSON from which the tables of the docs are generated."""
