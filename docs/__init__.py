"""The documentation: pages, and the scripts that keep their generated parts true."""
