"""What all jobs share: settings from conf/, job start-up, files that are whole or absent.

Imports only data_prep.text.language.
"""
