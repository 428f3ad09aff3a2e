"""The ways in: `experiment` is all of it in one object, for notebooks; `commands` is the command line."""
