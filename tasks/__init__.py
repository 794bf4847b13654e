"""Task heads: what a prior's network is taught to predict, with codecs, ensembles, tiles and exact metrics."""
