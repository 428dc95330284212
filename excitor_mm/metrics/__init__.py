"""Caption metrics, and the Java they need."""
