"""Prompts -> completions: the engines that sample, behind one seam."""
