"""Our methods beside other programs: one network, the same tokens, windows and threads in turns."""
