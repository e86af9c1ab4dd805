"""ttrpc on AF_UNIX sockets whose connections outlive the process that serves them."""
