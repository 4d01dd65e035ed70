"""Collapse diagnostics: spectra, effective rank, redundancy, mutual information."""
