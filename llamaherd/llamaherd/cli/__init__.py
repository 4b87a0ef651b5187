"""One module per command (or pair): reads its arguments, calls the herd, prints. Imported only when it is called."""
