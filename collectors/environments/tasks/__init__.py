"""Tasks with several best actions, and measures of how many of them a policy keeps."""
