"""One file per back end: how queries meet a paged cache."""
