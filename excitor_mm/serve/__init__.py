"""`excitor-mm serve`: one process, a web page and an HTTP API over the same batches."""
