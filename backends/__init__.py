"""Each backend builds an Engine (crystal/engine.py) for one kind of hardware; none knows the others."""
