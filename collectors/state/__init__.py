"""State of collectors, simulators and buffers: what an exact resume needs."""
