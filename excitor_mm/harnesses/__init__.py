"""Our model behind the interfaces of evaluation harnesses; each is an optional extra."""
