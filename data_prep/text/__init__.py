"""Pure functions from text to text: cleaning, wiki markup, Gutenberg, language, sentences.

May import: nothing of this project.
"""
