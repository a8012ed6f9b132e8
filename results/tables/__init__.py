"""Tables made of records, and others' published numbers."""
