"""Learning from a prior, or learning the prior itself: score distillation, objectives and the one trainer."""
