"""What preparing a corpus takes: measured on a sample by the jobs themselves, then extrapolated.

May import: data_prep.audit, data_prep.build, data_prep.collect, data_prep.core, data_prep.encode,
data_prep.encoding, data_prep.filter, data_prep.filters, data_prep.quality, data_prep.sources,
data_prep.sources.inputs, data_prep.stores, data_prep.vocab.
"""
