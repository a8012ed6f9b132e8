"""The methods' equations as fast passes over a weight."""
