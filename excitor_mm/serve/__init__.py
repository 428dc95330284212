"""One process that serves adapters: a web page and an HTTP API over the same batches. `excitor-mm serve` starts it."""
