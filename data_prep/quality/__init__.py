"""What the audit measures of a corpus and its shards, and how it shows it.

Imports everything below the commands.
"""
