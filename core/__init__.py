"""The shared machinery: frozen priors, sampling, distillation."""
