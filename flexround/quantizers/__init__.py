"""Weight quantizers, one file a method."""
