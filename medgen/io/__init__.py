"""Reading and writing of volumes: whole files or nothing."""
