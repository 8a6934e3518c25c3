"""Documents to the token store: sentences, their ids and words, and who is held out.

May import: data_prep.core, data_prep.duplicates, data_prep.quality, data_prep.stores,
data_prep.text, data_prep.tokenizer.
"""
