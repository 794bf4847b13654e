"""Learning from a frozen prior: score distillation and fine-tuning by its own rules."""
