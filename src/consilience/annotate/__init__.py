"""Annotation of texts with open models: codebook, prompting strategies, label scores, gold, corrected estimates."""
