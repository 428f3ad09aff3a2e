"""Nothing here changes what is computed: networks side by side, and batch norm folded away for evaluation."""
