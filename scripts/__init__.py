"""Programs of the project that are run by hand."""
