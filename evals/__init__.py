"""Suites, decoding and scoring."""
