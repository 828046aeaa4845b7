"""Teacher, targets, head, loss, and the module that joins them."""
