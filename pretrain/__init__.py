"""Shards to a trained, exported BERT."""
