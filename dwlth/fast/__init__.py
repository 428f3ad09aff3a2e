"""Nothing here changes what is computed: networks side by side, no batch norm, no dead channels, a shared batch."""
