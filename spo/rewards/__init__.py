"""Completions -> rewards."""
