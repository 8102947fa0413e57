"""Cohorts: folders of generated subjects with manifest and pictures."""
