"""Parameter groups, Adam, LAMB and learning-rate schedules: functions of gradients and the step.

May import: pretrain.config.
"""
