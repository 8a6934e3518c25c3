"""Parameter groups, Adam, LAMB and learning-rate schedules.

May import: data_prep.plugins, pretrain.config.
"""
