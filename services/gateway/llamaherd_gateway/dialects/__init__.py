"""How each kind of client wants to be spoken to. One module per dialect, pure."""
