"""The model: CrystalCoder's architecture, its initialisation and its cost. Runs on torch 2.4 and newer."""
