"""Parameter groups, Adam, LAMB and learning-rate schedules.

May import: pretrain.config.
"""
