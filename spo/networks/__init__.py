"""Transformers models behind one forward pass: micro-batch -> log-probs or values."""
