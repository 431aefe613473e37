"""The store's contract: messages and stubs, generated from proto/ when the package is built."""
