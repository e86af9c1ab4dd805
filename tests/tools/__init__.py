"""Programs the tests run beside the daemon; also of use by hand."""
