"""cloudpickle by the name that Ray's programs use: `from ray import cloudpickle`. What a pickled reference refers to is kept until the process disconnects."""

from cloudpickle import CloudPickler, Pickler, dump, dumps, load, loads, register_pickle_by_value, unregister_pickle_by_value

__all__ = ["CloudPickler", "Pickler", "dump", "dumps", "load", "loads", "register_pickle_by_value", "unregister_pickle_by_value"]
