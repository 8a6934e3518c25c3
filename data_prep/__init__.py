"""Text to shards: collect, vocab, encode, build, audit."""
