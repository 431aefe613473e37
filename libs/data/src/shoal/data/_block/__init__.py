"""Blocks: Arrow tables, and their conversions from and to rows, batches and tensors."""
