"""Requests → operations → replies: one table for Task v2 and v3, and the control service."""
