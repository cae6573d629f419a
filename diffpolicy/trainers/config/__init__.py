"""Option groups, and the command line that is made of them."""
