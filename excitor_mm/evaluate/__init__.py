"""Scores of predictions: functions of files that need no model."""
