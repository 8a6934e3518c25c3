"""The training loop and what it uses: phases, anomalies, evaluation, preflight, summary.

Imports everything below the commands except reporting and verification.
"""
