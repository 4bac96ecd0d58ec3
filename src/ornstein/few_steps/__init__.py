"""Sampling in few steps: solvers tuned to one model, and the targets of distillation."""
