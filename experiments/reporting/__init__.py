"""What a run found, as sentences, tables, and pages."""
