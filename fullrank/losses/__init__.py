"""Losses: functions on tensors and batches."""
