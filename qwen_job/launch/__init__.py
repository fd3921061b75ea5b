"""Only this room talks to a cluster: submit, status, logs, cancel."""
