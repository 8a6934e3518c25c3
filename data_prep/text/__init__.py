"""Pure functions from text to text: cleaning, wiki markup, Gutenberg, language, sentences.

Imports nothing of this project.
"""
