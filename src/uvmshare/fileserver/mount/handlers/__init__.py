"""What each message does: one function a message, one module a subject, and the `table` of them."""
