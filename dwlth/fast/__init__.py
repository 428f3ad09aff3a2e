"""Nothing here changes what is computed: networks side by side, batch norm folded away, processes that share a batch."""
