"""What runs inside tasks: steps over pieces of tables, arrangements of whole blocks, and reducers over many."""
