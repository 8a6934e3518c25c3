"""Shared by all jobs: settings from conf/, job start-up, files that are whole or absent.

May import: data_prep.text.
"""
