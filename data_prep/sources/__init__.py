"""One file a kind of source; each yields documents."""
